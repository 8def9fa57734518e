"""What the command line refuses before anything is loaded: each message names the flag, the value and the mend."""

import argparse
import math
import os
from importlib.util import find_spec

from training.errors import OptionError
from training.options.arguments import NONE
from training.options.derived import precision


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work.

    Raises:
        OptionError: names the flag, the value and the mend.
    """
    for check in (_check_data, _check_numbers, _check_method, _check_models, _check_memory, _check_output):
        check(args)


def _require(condition: bool, flag: str, value: object, mend: str) -> None:
    if not condition:
        raise OptionError(f"--{flag} got {value!r}: {mend}")


def _check_data(args: argparse.Namespace) -> None:
    if (args.dataset_name is None) == (args.train_data_dir is None):
        raise OptionError(
            f"--dataset_name got {args.dataset_name!r} and --train_data_dir got {args.train_data_dir!r}: "
            "give exactly one of them"
        )
    if args.train_data_dir is not None:
        _require(os.path.isdir(args.train_data_dir), "train_data_dir", args.train_data_dir, "this is no folder")
    if args.streaming:
        _require(
            args.max_train_steps is not None,
            "streaming",
            True,
            "the length of a streamed set is unknown; say how long to train with --max_train_steps",
        )
    _require(args.resolution % 8 == 0, "resolution", args.resolution, "give a multiple of 8, the autoencoder's factor")


def _check_numbers(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            finite = not isinstance(number, float) or math.isfinite(number)
            without_limit = "; 1e9 never clips" if name == "max_grad_norm" else ""
            _require(finite, name, value, f"give a finite number{without_limit}")
    at_least_one = (
        "train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_train_steps", "max_train_samples",
        "resolution", "teacher_steps", "checkpointing_steps", "checkpoints_total_limit", "validation_steps",
        "discriminator_input_size", "max_skipped_steps", "lr_num_cycles", "lora_rank",
    )  # fmt: skip
    positive = ("learning_rate", "discriminator_learning_rate", "max_grad_norm", "adam_epsilon", "lora_alpha")
    not_negative = ("adversarial_weight", "distillation_weight", "r1_gamma", "adam_weight_decay", "lr_warmup_steps",
                    "dataloader_num_workers", "seed", "decode_crop_halo")  # fmt: skip
    fractions = (
        "adam_beta1",
        "adam_beta2",
        "discriminator_adam_beta1",
        "discriminator_adam_beta2",
        "ema_decay",
        "lora_dropout",
    )
    for names, holds, mend in (
        (at_least_one, lambda v: v >= 1, "give 1 or more"),
        (positive, lambda v: v > 0, "give a number above 0"),
        (not_negative, lambda v: v >= 0, "give 0 or more"),
        (fractions, lambda v: 0 <= v < 1, "give a number in [0, 1)"),
    ):
        for name in names:
            value = getattr(args, name)
            _require(value is None or holds(value), name, value, mend)


def _check_method(args: argparse.Namespace) -> None:
    steps = args.student_timesteps
    _require(
        steps == sorted(set(steps)) and steps[0] >= 0,
        "student_timesteps",
        steps,
        "give rising training indices, such as 249 499 749 999",
    )
    probabilities = args.student_timestep_probabilities
    if probabilities is not None:
        _require(
            len(probabilities) == len(steps),
            "student_timestep_probabilities",
            probabilities,
            f"give one for each of the {len(steps)} --student_timesteps",
        )
        _require(
            min(probabilities) >= 0 and abs(sum(probabilities) - 1) < 1e-6,
            "student_timestep_probabilities",
            probabilities,
            "they must be 0 or more and sum to 1",
        )
    if args.adversarial_weight == 0 and args.distillation_weight == 0:
        raise OptionError(
            "--adversarial_weight got 0 and --distillation_weight got 0: nothing would be trained; "
            "set one of them above 0 (the paper: 1 and 2.5)"
        )
    low, high = args.teacher_timestep_range
    _require(0 <= low < high, "teacher_timestep_range", [low, high], "give 0 <= LOW < HIGH, such as 20 980")
    if args.distillation_weighting == "nfsd":
        _require(
            args.teacher_steps == 1,
            "teacher_steps",
            args.teacher_steps,
            "nfsd defines its target for one prediction; use --teacher_steps 1 or another --distillation_weighting",
        )
    elif args.negative_prompt is not None:
        _require(
            args.teacher_guidance_scale not in (None, 1.0),
            "negative_prompt",
            args.negative_prompt,
            "an unguided teacher does not read it; set --teacher_guidance_scale above 1",
        )


def _check_models(args: argparse.Namespace) -> None:
    _require(
        args.discriminator_feature_model != NONE,
        "discriminator_feature_model",
        NONE,
        "the discriminator needs its feature network; for distillation alone set --adversarial_weight 0",
    )
    for flag in ("student_revision", "student_variant"):
        value = getattr(args, flag)
        _require(
            value is None or args.pretrained_student_model is not None,
            flag,
            value,
            "the student is made of the teacher's repo; use --" + flag.removeprefix("student_"),
        )
    for flag, model in (
        ("discriminator_text_model_revision", "discriminator_text_model"),
        ("discriminator_image_model_revision", "discriminator_image_model"),
        ("tiny_vae_revision", "pretrained_tiny_vae_model"),
        ("vae_revision", "pretrained_vae_model_name_or_path"),
    ):
        value = getattr(args, flag, None)
        named = getattr(args, model, None) not in (None, NONE)
        _require(value is None or named, flag, value, f"it is read only with --{model}")
    for flag in ("lora_alpha", "lora_target_modules", "fuse_lora"):
        value = getattr(args, flag)
        _require(not value or args.use_lora, flag, value, "add --use_lora, or nothing reads it")
    _require(
        not (args.use_lora and args.student_init == "random"),
        "student_init",
        "random",
        "an adapter on random weights has nothing to adapt; leave out --use_lora",
    )


def _check_memory(args: argparse.Namespace) -> None:
    size = args.decode_crop_size
    if size is not None:
        _require(
            size >= 8 and size % 8 == 0 and size <= args.resolution,
            "decode_crop_size",
            size,
            f"give a multiple of 8 up to --resolution {args.resolution}",
        )
        _require(
            args.adversarial_weight > 0 or args.distillation_space == "pixel",
            "decode_crop_size",
            size,
            "nothing is decoded: the loss is in latents and there is no discriminator",
        )
    if args.cache_dir_latents is not None:
        folder = args.cache_dir_latents
        _require(not args.streaming, "cache_dir_latents", folder, "a stream has no index to cache by")
        _require(
            args.center_crop and not args.random_flip,
            "cache_dir_latents",
            folder,
            "cached latents are of one crop; use --center_crop and leave out --random_flip",
        )
    if args.teacher_precision is not None:
        _require(
            args.distillation_weight > 0 or args.use_lora,
            "teacher_precision",
            args.teacher_precision,
            "--distillation_weight 0 loads no teacher",
        )
        _require(
            not args.use_lora or args.teacher_precision == "fp32" or precision(args) != "no",
            "teacher_precision",
            args.teacher_precision,
            "with --use_lora it is the precision of the student's base too, which a run in float32 cannot train "
            "through; add --mixed_precision bf16 or leave the flag out",
        )


def _check_output(args: argparse.Namespace) -> None:
    _require(not os.path.isfile(args.output_dir), "output_dir", args.output_dir, "this is a file; name a folder")
    full_model = os.path.join(args.output_dir, "model_index.json")
    _require(
        not args.use_lora or args.fuse_lora or not os.path.isfile(full_model),
        "output_dir",
        args.output_dir,
        "it holds a whole model, which would be published beside the adapter; name another folder, or add --fuse_lora",
    )
    if args.export_single_file is not None:
        flag, file = "export_single_file", args.export_single_file
        _require(file.endswith(".safetensors"), flag, file, "give a file name that ends in .safetensors")
        _require(not args.use_lora or args.fuse_lora, flag, file, "an adapter is no checkpoint; add --fuse_lora")
    for flag in ("hub_model_id", "hub_token", "hub_private_repo", "push_every_checkpoint"):
        value = getattr(args, flag)
        shown = "***" if flag == "hub_token" else value
        _require(not value or args.push_to_hub, flag, shown, "add --push_to_hub, or nothing is pushed")
    if args.hub_token is not None:
        _require(
            args.report_to != "wandb",
            "hub_token",
            "***",
            "the command line is stored by wandb, and the token with it; use `hf auth login` instead",
        )
    if args.enable_xformers_memory_efficient_attention:
        _require(
            find_spec("xformers") is not None,
            "enable_xformers_memory_efficient_attention",
            True,
            "xformers is not installed: pip install xformers, or leave the flag out for torch's own attention",
        )
