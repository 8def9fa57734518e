"""What to do when the device's memory does not suffice."""

import argparse


def advice(args: argparse.Namespace) -> str:
    """What is not yet in use of the flags that save memory, as counted for SDXL by `benchmarks.full_size options`.

    First come those that leave the method as it is, among them the one that saves most; then those that change it.
    """
    same_repo = args.pretrained_student_model is None
    # With one or two images, gradients and optimizer of all weights are what there is; with more, activations.
    is_small = args.train_batch_size <= 2 and not args.use_lora
    smaller, more = args.train_batch_size // 2, args.gradient_accumulation_steps * 2
    first = (
        ("--gradient_checkpointing (four fifths of the activations, for a quarter more computing)",
         not args.gradient_checkpointing),
        ("--use_8bit_adam (three quarters of the optimizer's state)", not args.use_8bit_adam and not args.use_lora),
    )  # fmt: skip
    options = (
        *(reversed(first) if is_small else first),
        (f"--train_batch_size {smaller} --gradient_accumulation_steps {more}", smaller > 0),
        ("--cache_dir_latents DIR (the encoders leave the device)", args.cache_dir_latents is None),
        ("--use_lora (four fifths of weights and optimizer)", same_repo and not args.use_lora),
        ("--decode_crop_size 224 (a third of the activations that are left)",
         args.decode_crop_size is None and args.resolution > 224 and args.adversarial_weight > 0),
        ("--distillation_space latent (one decoding less)", same_repo and args.distillation_space == "pixel"),
        ("--teacher_precision 4bit", args.teacher_precision not in ("4bit", "8bit")),
    )  # fmt: skip
    unused = [text for text, applies in options if applies]
    if not unused:
        return "all that saves memory is in use: lower --resolution, or take a larger device"
    return "not yet in use, what saves most without changing the method first: " + "; ".join(unused)
