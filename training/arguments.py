"""The command line that both training scripts share.

Names, meanings and defaults are those of diffusers' example scripts wherever one of them has the flag; the flags of the
method carry their unit and source. `check_arguments` refuses what cannot work before anything is loaded.
"""

import argparse
import os
from collections.abc import Callable, Sequence

from discriminator import NORMS
from distillation.objectives import WEIGHTINGS
from distillation.student import DEFAULT_STUDENT_TIMESTEPS

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
NONE = "none"  # spelled on the command line for "without this network"


class ArgumentError(ValueError):
    """A combination of flags that cannot work: names the flag, the value it got and the mend."""


def make_parser(description: str) -> argparse.ArgumentParser:
    """The shared parser; a script adds the flags that are its family's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for add in (_models, _data, _method, _discriminator, _optimization, _saving, _validation, _hub, _hardware):
        add(parser)
    return parser


# One flag a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def _models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add("--pretrained_teacher_model", required=True, help="Hub id or folder; the student starts from it.")
    add("--revision", default=None, help="Branch, tag or commit of the teacher's Hub repo.")
    add("--variant", default=None, help="Variant of the teacher's weight files, such as fp16.")
    add("--cache_dir", default=None, help="Where downloaded models and data sets are kept.")
    add("--student_init", choices=["teacher", "random"], default="teacher", help="Where the student starts. Random "
        "weights collapse in the paper (Table 1c, FID 293.6); the choice exists for that comparison.")


def _data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", default=None, help="Hub id (or a path that datasets understands) of an image-caption set.")
    add("--dataset_config_name", default=None, help="Configuration of the data set, where it has several.")
    add("--train_data_dir", default=None, help="Folder of images with a metadata.jsonl that has `file_name` and the "
        "caption column. Used where --dataset_name is not given.")
    add("--image_column", default="image", help="Column that holds the image.")
    add("--caption_column", default="text", help="Column that holds the caption or a list of captions.")
    add("--max_train_samples", type=int, default=None, help="Use only so many samples of the set.")
    add("--streaming", action="store_true", help="Read the set as it is downloaded, instead of first and whole.")
    add("--resolution", type=int, default=512, help="Side of the training images, pixels. The paper uses 512.")
    add("--center_crop", action="store_true", help="Crop the middle; without it a random square.")
    add("--random_flip", action="store_true", help="Mirror half of the images left to right.")
    add("--dataloader_num_workers", type=int, default=0, help="Processes that load data; 0 loads in the main one.")


def _method(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("method (paper 3.1 and 3.3)").add_argument
    add("--student_timesteps", type=int, nargs="+", default=list(DEFAULT_STUDENT_TIMESTEPS), metavar="S",
        help="T_student, training indices; the last must be the schedule's last (999). The reference sampler of the "
        "released models visits 699 799 899 999.")
    add("--student_timestep_probabilities", type=float, nargs="+", default=None, metavar="P",
        help="How often each of --student_timesteps is drawn; sums to 1. Uniform where not given, as in the paper.")
    add("--zero_terminal_snr", choices=["terminal", "rescale"], default=None, help="How the student starts from pure "
        "noise: `rescale` the schedule (2305.08891; v_prediction and sample students), or keep it and replace "
        "the input at the last timestep (`terminal`). By default the one that fits the prediction type.")
    add("--adversarial_weight", type=float, default=1.0, help="Weight of L_adv; 0 trains without a discriminator.")
    add("--distillation_weight", type=float, default=2.5, help="lambda of Eq. 1; 0 trains without a teacher.")
    add("--distillation_weighting", choices=WEIGHTINGS, default="exponential",
        help="c(t) of Eq. 4. The paper's ablations use exponential, its final models nfsd.")
    add("--distillation_space", choices=["pixel", "latent"], default="pixel",
        help="Where L_distill is measured. The paper found pixels more stable; latents save one decoding.")
    add("--teacher_guidance_scale", type=float, default=None, help="Classifier-free guidance of the teacher's target; "
        "1 is none. Default 1, and 7.5 for nfsd. Above 1 the teacher runs twice.")
    add("--teacher_steps", type=int, default=1, help="Consecutive DDIM steps of the teacher (Table 1f: one suffices).")
    add("--teacher_timestep_range", type=int, nargs=2, default=[20, 980], metavar=("LOW", "HIGH"),
        help="t of Eq. 4 is uniform in [LOW, HIGH), training indices.")
    add("--negative_prompt", default=None, help="What the guided teacher moves away from. Default: the empty prompt, "
        "and for nfsd the negative prompt of its paper.")


def _discriminator(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("discriminator (paper 3.2)").add_argument
    add("--discriminator_feature_model", default="facebook/dinov2-small", help="F, a frozen vision transformer by Hub "
        "id or folder: DINOv2, DINOv1 (facebook/dino-vits16) or CLIP (Table 1a).")
    add("--discriminator_text_model", default="laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        help="Text encoder of c_text, a CLIP with projection; `none` switches the condition off (Table 1b).")
    add("--discriminator_image_model", default="facebook/dinov2-large",
        help="Image encoder of c_img; `none` switches the condition off (Table 1b).")
    add("--discriminator_input_size", type=int, default=None, help="Side of F's input, pixels. Default 224, or F's own "
        "size where that is smaller; up to 518 for DINOv2.")
    add("--discriminator_learning_rate", type=float, default=1e-3, help="Of the heads. StyleGAN-T uses 2e-3.")
    add("--discriminator_adam_beta1", type=float, default=0.0, help="As StyleGAN-T.")
    add("--discriminator_adam_beta2", type=float, default=0.99, help="As StyleGAN-T.")
    add("--r1_gamma", type=float, default=1e-5, help="gamma of the R1 penalty on the heads' inputs (paper 3.2).")
    add("--condition_image_at_last_timestep", action="store_true", help="Keep c_img where the student's input is pure "
        "noise. By default it is zeroed there: the student cannot know x0, and would be pushed to the mean.")
    add("--discriminator_norm", choices=NORMS, default="virtual_batch", help="Of the heads: batch norm in virtual "
        "groups of 8 (StyleGAN-T), or group norm, which treats every sample by itself and suits small batches.")
    add("--no_diffaugment", action="store_true", help="Show the discriminator unaugmented images.")


def _optimization(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimization").add_argument
    add("--train_batch_size", type=int, default=16, help="Samples a device and micro-batch.")
    add("--gradient_accumulation_steps", type=int, default=1, help="Micro-batches an iteration. Above 1 each is "
        "sampled twice: the discriminator takes its step before the student's first gradient, as with one large batch.")
    add("--num_train_epochs", type=int, default=100, help="Passes over the set, where --max_train_steps is not given.")
    add("--max_train_steps", type=int, default=None, help="Iterations: one discriminator and one student step each.")
    add("--learning_rate", type=float, default=1e-5, help="Of the student. Full training: 1e-6 to 1e-5.")
    add("--scale_lr", action="store_true", help="Multiply both learning rates by devices x accumulation x batch size.")
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant", help="Course of both learning rates.")
    add("--lr_warmup_steps", type=int, default=500, help="Iterations of warm-up, for schedulers that have one.")
    add("--lr_num_cycles", type=int, default=1, help="Hard restarts of cosine_with_restarts.")
    add("--lr_power", type=float, default=1.0, help="Power of the polynomial scheduler.")
    add("--use_8bit_adam", action="store_true", help="bitsandbytes' AdamW8bit for the student: a quarter of the state.")
    add("--adam_beta1", type=float, default=0.9, help="Of the student's AdamW.")
    add("--adam_beta2", type=float, default=0.999, help="Of the student's AdamW.")
    add("--adam_weight_decay", type=float, default=1e-2, help="Of the student's AdamW; the heads have none.")
    add("--adam_epsilon", type=float, default=1e-8, help="Of both optimizers.")
    add("--max_grad_norm", type=float, default=1.0, help="Gradient clip, of student and heads each by itself.")
    add("--use_ema", action="store_true", help="Publish and validate an exponential moving average of the student.")
    add("--ema_decay", type=float, default=0.999, help="Of the average, an iteration.")
    add("--max_skipped_steps", type=int, default=5, help="A non-finite loss or gradient skips the step; after so many "
        "in a row the run ends.")
    add("--seed", type=int, default=None, help="Of data order, noise and initialisation. Drawn and printed if absent.")


def _saving(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("checkpoints and output").add_argument
    add("--output_dir", default="add-model", help="The published model, checkpoints and logs.")
    add("--checkpointing_steps", type=int, default=500, help="Iterations between checkpoints.")
    add("--checkpoints_total_limit", type=int, default=None, help="Checkpoints to keep; older ones are pruned.")
    add("--resume_from_checkpoint", default=None, help="`latest`, or the name or path of a checkpoint-N folder.")
    add("--logging_dir", default="logs", help="Of the trackers, under --output_dir.")
    add("--report_to", default="tensorboard", help="tensorboard, wandb, comet_ml, all, or none.")
    add("--tracker_project_name", default="add", help="Name of the run's project at the trackers.")


def _validation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("validation").add_argument
    add("--validation_prompts", nargs="+", default=None, help="Prompts of the sample grids at 1, 2 and 4 steps.")
    add("--validation_steps", type=int, default=200, help="Iterations between sample grids.")


def _hub(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("publishing").add_argument
    add("--push_to_hub", action="store_true", help="Upload the published model (no checkpoints, no logs) at the end.")
    add("--hub_model_id", default=None, help="Repo to push to; the name of --output_dir where not given.")
    add("--hub_token", default=None, help="Token to push with; the one of `hf auth login` where not given.")


def _hardware(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("hardware").add_argument
    add("--mixed_precision", choices=["no", "fp16", "bf16"], default=None, help="Default: accelerate's configuration; "
        "where that says nothing, bf16 on a GPU that has it and float32 elsewhere.")
    add("--gradient_checkpointing", action="store_true", help="Recompute the student's and decoder's activations in "
        "the backward pass: less memory, more time.")
    add("--enable_xformers_memory_efficient_attention", action="store_true", help="xformers in the UNets (GPU only); "
        "torch's own attention otherwise.")
    add("--allow_tf32", action="store_true", help="TF32 matrix products on Ampere and later.")


# fmt: on
def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work.

    Raises:
        ArgumentError: names the flag, the value and the mend.
    """
    for check in (_check_data, _check_numbers, _check_method, _check_discriminator, _check_output):
        check(args)


def _require(condition: bool, flag: str, value: object, mend: str) -> None:
    if not condition:
        raise ArgumentError(f"--{flag} got {value!r}: {mend}")


def _check_data(args: argparse.Namespace) -> None:
    if (args.dataset_name is None) == (args.train_data_dir is None):
        raise ArgumentError(
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
    at_least_one = (
        "train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_train_steps", "max_train_samples",
        "resolution", "teacher_steps", "checkpointing_steps", "checkpoints_total_limit", "validation_steps",
        "discriminator_input_size", "max_skipped_steps", "lr_num_cycles",
    )  # fmt: skip
    positive = ("learning_rate", "discriminator_learning_rate", "max_grad_norm", "adam_epsilon")
    not_negative = ("adversarial_weight", "distillation_weight", "r1_gamma", "adam_weight_decay", "lr_warmup_steps",
                    "dataloader_num_workers", "seed")  # fmt: skip
    fractions = ("adam_beta1", "adam_beta2", "discriminator_adam_beta1", "discriminator_adam_beta2", "ema_decay")
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
        raise ArgumentError(
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


def _check_discriminator(args: argparse.Namespace) -> None:
    _require(
        args.discriminator_feature_model != NONE,
        "discriminator_feature_model",
        NONE,
        "the discriminator needs its feature network; for distillation alone set --adversarial_weight 0",
    )


def _check_output(args: argparse.Namespace) -> None:
    _require(not os.path.isfile(args.output_dir), "output_dir", args.output_dir, "this is a file; name a folder")
    if args.hub_token is not None or args.hub_model_id is not None:
        flag = "hub_model_id" if args.hub_token is None else "hub_token"
        value = args.hub_model_id if args.hub_token is None else "***"
        _require(args.push_to_hub, flag, value, "add --push_to_hub, or nothing is pushed")
    if args.hub_token is not None:
        _require(
            args.report_to != "wandb",
            "hub_token",
            "***",
            "the command line is stored by wandb, and the token with it; use `hf auth login` instead",
        )
    if args.enable_xformers_memory_efficient_attention:
        from importlib.util import find_spec

        _require(
            find_spec("xformers") is not None,
            "enable_xformers_memory_efficient_attention",
            True,
            "xformers is not installed: pip install xformers, or leave the flag out for torch's own attention",
        )


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, command: Callable) -> None:
    """Parse, check and call `command(args)`. A refusal ends the program with its message alone and status 2.

    argparse's own way would print the usage of seventy flags above the one line that matters.
    """
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        command(args)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
