"""Checks that refuse invalid combinations of flags before anything is loaded.

The range of a single flag is part of its declaration; these checks concern several flags, files or packages.
"""

import os
from importlib.util import find_spec

import torch

from training.data.sources import LOADERS
from training.errors import OptionError
from training.options.derived import needs_teacher, precision
from training.options.discriminator_refusals import check_discriminator
from training.options.method import NONE
from training.options.options import Options


def refuse(options: Options) -> None:
    """Check combinations of flags.

    Raises:
        OptionError: a combination cannot work; the message names the flag, its value and the fix.
    """
    checks = (
        _check_data,
        _check_method,
        check_discriminator,
        _check_models,
        _check_memory,
        _check_output,
        _check_hardware,
    )
    for check in checks:
        check(options)


def _require(condition: bool, flag: str, value: object, fix: str) -> None:
    if not condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise OptionError(f"--{flag} got {shown!r}: {fix}")


def _check_data(options: Options) -> None:
    data, optimization = options.data, options.optimization
    both = data.dataset_name is not None and data.train_data_dir is not None
    neither = data.dataset_name is None and data.train_data_dir is None
    if neither or (both and data.dataset_name not in LOADERS):
        raise OptionError(
            f"--dataset_name got {data.dataset_name!r} and --train_data_dir got {data.train_data_dir!r}: "
            f"give exactly one of them, or --train_data_dir with one of the loaders {', '.join(LOADERS)} as "
            "--dataset_name"
        )
    _require(
        data.dataset_name not in LOADERS or both,
        "dataset_name",
        data.dataset_name,
        "this loader reads the files in a folder; give the folder with --train_data_dir",
    )
    _require(
        data.dataset_revision is None or (data.dataset_name is not None and not both),
        "dataset_revision",
        data.dataset_revision,
        "files in a folder have no revision; leave the flag out, or give a data set on the Hub with --dataset_name",
    )
    if data.train_data_dir is not None:
        _require(os.path.isdir(data.train_data_dir), "train_data_dir", data.train_data_dir, "there is no such folder")
    _require(
        not data.streaming or optimization.max_train_steps is not None,
        "streaming",
        True,
        "the length of a streamed data set is unknown; set --max_train_steps",
    )
    _require(data.resolution % 8 == 0, "resolution", data.resolution, "give a multiple of 8 (the autoencoder's factor)")


def _check_method(options: Options) -> None:
    method = options.method
    steps = method.student_timesteps
    _require(
        list(steps) == sorted(set(steps)) and steps[0] >= 0,
        "student_timesteps",
        steps,
        "give timesteps in ascending order, such as 249 499 749 999",
    )
    for flag in ("student_timestep_probabilities", "student_timestep_warmup_probabilities"):
        probabilities = getattr(method, flag)
        if probabilities is not None:
            each = f"give one probability for each of the {len(steps)} --student_timesteps"
            _require(len(probabilities) == len(steps), flag, probabilities, each)
            is_distribution = min(probabilities) >= 0 and abs(sum(probabilities) - 1) < 1e-6
            _require(is_distribution, flag, probabilities, "probabilities must be 0 or more and sum to 1")
    _require(
        method.student_timestep_warmup_probabilities is None or method.student_timestep_warmup_steps > 0,
        "student_timestep_warmup_probabilities",
        method.student_timestep_warmup_probabilities,
        "there is no warm-up; say how long it is with --student_timestep_warmup_steps",
    )
    if method.adversarial_weight == 0 and method.distillation_weight == 0:
        raise OptionError(
            "--adversarial_weight got 0 and --distillation_weight got 0: nothing would be trained; "
            "set one of them above 0 (the paper: 1 and 2.5)"
        )
    low, high = method.teacher_timestep_range
    _require(0 <= low < high, "teacher_timestep_range", (low, high), "give 0 <= LOW < HIGH, such as 20 980")
    if method.distillation_weighting == "nfsd":
        _require(
            method.teacher_steps == 1,
            "teacher_steps",
            method.teacher_steps,
            "nfsd is only defined for one teacher step; use --teacher_steps 1 or another --distillation_weighting",
        )
    elif method.negative_prompt is not None:
        _require(
            method.teacher_guidance_scale not in (None, 1.0),
            "negative_prompt",
            method.negative_prompt,
            "it has no effect without guidance; set --teacher_guidance_scale above 1",
        )


def _check_models(options: Options) -> None:
    models, lora = options.models, options.lora
    _require(
        options.discriminator.discriminator_feature_model != NONE,
        "discriminator_feature_model",
        NONE,
        "the discriminator needs its feature network; for distillation alone set --adversarial_weight 0",
    )
    for flag in ("student_revision", "student_variant"):
        value = getattr(models, flag)
        _require(
            value is None or models.pretrained_student_model is not None,
            flag,
            value,
            "the student starts from the teacher's repo, so use --" + flag.removeprefix("student_"),
        )
    flat = options.flat()
    for flag, model in (
        ("discriminator_text_model_revision", "discriminator_text_model"),
        ("discriminator_image_model_revision", "discriminator_image_model"),
        ("tiny_vae_revision", "pretrained_tiny_vae_model"),
        ("vae_revision", "pretrained_vae_model_name_or_path"),
    ):
        _require(
            flat[flag] is None or flat[model] not in (None, NONE),
            flag,
            flat[flag],
            f"it has no effect without --{model}",
        )
    for flag in ("lora_alpha", "lora_target_modules", "fuse_lora"):
        value = getattr(lora, flag)
        _require(not value or lora.use_lora, flag, value, "add --use_lora; the flag has no effect without it")
    _require(
        not (lora.use_lora and models.student_init == "random"),
        "student_init",
        "random",
        "a LoRA adapter needs pretrained base weights; leave out --use_lora",
    )


def _check_memory(options: Options) -> None:
    hardware, data = options.hardware, options.data
    size = hardware.decode_crop_size
    if size is not None:
        _require(
            size >= 8 and size % 8 == 0 and size <= data.resolution,
            "decode_crop_size",
            size,
            f"give a multiple of 8 up to --resolution {data.resolution}",
        )
    folder = hardware.cache_dir_latents
    if folder is not None:
        _require(not data.streaming, "cache_dir_latents", folder, "a streamed data set cannot be cached; leave one out")
        _require(
            data.center_crop and not data.random_flip,
            "cache_dir_latents",
            folder,
            "the cache has one crop of each image; use --center_crop and leave out --random_flip",
        )
    if hardware.teacher_precision is not None:
        _require(
            needs_teacher(options) or options.lora.use_lora,
            "teacher_precision",
            hardware.teacher_precision,
            "--distillation_weight 0 loads no teacher; leave the flag out",
        )
        _require(
            not options.lora.use_lora or hardware.teacher_precision == "fp32" or precision(options) != "no",
            "teacher_precision",
            hardware.teacher_precision,
            "with --use_lora the base weights of the student have this precision too, which requires mixed precision; "
            "add --mixed_precision bf16 or leave the flag out",
        )


def _check_output(options: Options) -> None:
    output, lora, hub = options.output, options.lora, options.hub
    _require(not os.path.isfile(output.output_dir), "output_dir", output.output_dir, "this is a file; give a folder")
    full_model = os.path.join(output.output_dir, "model_index.json")
    _require(
        not lora.use_lora or lora.fuse_lora or not os.path.isfile(full_model),
        "output_dir",
        output.output_dir,
        "the folder contains a full model, which would be published together with the adapter; give another folder, or "
        "add --fuse_lora",
    )
    file = output.export_single_file
    if file is not None:
        _require(
            file.endswith(".safetensors"), "export_single_file", file, "give a file name that ends in .safetensors"
        )
        _require(
            not lora.use_lora or lora.fuse_lora,
            "export_single_file",
            file,
            "a LoRA adapter alone cannot be exported as a checkpoint; add --fuse_lora",
        )
    for flag in ("hub_model_id", "hub_token", "hub_private_repo", "push_every_checkpoint"):
        value = getattr(hub, flag)
        shown = "***" if flag == "hub_token" else value
        _require(not value or hub.push_to_hub, flag, shown, "add --push_to_hub; nothing is pushed without it")
    if hub.hub_token is not None:
        _require(
            output.report_to != "wandb" and (output.report_to != "all" or find_spec("wandb") is None),
            "hub_token",
            "***",
            "wandb stores the command line, which contains the token; use `hf auth login` instead",
        )
    _check_trackers(output.report_to)


# The package of each tracker. accelerate silently ignores a tracker whose package is not installed.
_TRACKER_PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "mlflow": "mlflow", "aim": "aim",
    "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab", "trackio": "trackio",
}  # fmt: skip


def _check_trackers(report_to: str) -> None:
    """Raise an OptionError if the tracker of `--report_to` is unknown or not installed."""
    if report_to in (NONE, "all"):
        return
    known = ", ".join((*_TRACKER_PACKAGES, "all", NONE))
    _require(report_to in _TRACKER_PACKAGES, "report_to", report_to, f"choose from {known}")
    package = _TRACKER_PACKAGES[report_to]
    _require(find_spec(package) is not None, "report_to", report_to, f"it is not installed: pip install {package}")


def _check_hardware(options: Options) -> None:
    hardware = options.hardware
    _require(
        hardware.mixed_precision != "fp16" or torch.cuda.is_available(),
        "mixed_precision",
        "fp16",
        "fp16 needs a GPU; on a CPU use bf16 or no",
    )
    if hardware.enable_xformers_memory_efficient_attention:
        flag = "enable_xformers_memory_efficient_attention"
        _require(torch.cuda.is_available(), flag, True, "xformers needs a GPU; leave the flag out")
        _require(
            find_spec("xformers") is not None,
            flag,
            True,
            "xformers is not installed; run `pip install xformers`, or leave the flag out to use PyTorch's attention",
        )
