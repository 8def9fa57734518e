"""The command line that both training scripts share.

Names, meanings and defaults are those of diffusers' example scripts wherever one of them has the flag; the flags of the
method carry their unit and source. What cannot work is refused in `checks.py`.
"""

import argparse

from discriminator import NORMS
from distillation.objectives import WEIGHTINGS
from distillation.student import DEFAULT_STUDENT_TIMESTEPS

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
NONE = "none"  # spelled on the command line for "without this network"


def make_parser(description: str) -> argparse.ArgumentParser:
    """The shared parser; a script adds the flags that are its family's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for add in (_models, _lora, _data, _method, _discriminator, _optimization, _saving, _validation, _hub, _hardware):
        add(parser)
    return parser


def add_sdxl_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that only the SDXL script has."""
    add = parser.add_argument_group("SDXL").add_argument
    add(
        "--pretrained_vae_model_name_or_path",
        default=None,
        help="Autoencoder in place of the student's own, such as madebyollin/sdxl-vae-fp16-fix; it is published with "
        "the student. SDXL's own overflows in fp16, where it is run in bf16 or fp32 instead.",
    )
    add(
        "--vae_revision",
        default=None,
        help="Branch, tag or commit of the Hub repo of --pretrained_vae_model_name_or_path.",
    )


# One flag a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def _models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add("--pretrained_teacher_model", required=True, help="Hub id or folder; the student starts from it.")
    add("--revision", default=None, help="Branch, tag or commit of the teacher's Hub repo.")
    add("--variant", default=None, help="Variant of the teacher's weight files, such as fp16.")
    add("--pretrained_student_model", default=None, help="Hub id or folder the student is made of, where that is not "
        "the teacher's: another prediction type, size or latent space (Table 1e). It keeps its own autoencoder, text "
        "encoders and schedule; the teacher keeps its own too.")
    add("--student_revision", default=None, help="Branch, tag or commit of the student's Hub repo.")
    add("--student_variant", default=None, help="Variant of the student's weight files, such as fp16.")
    add("--cache_dir", default=None, help="Where downloaded models and data sets are kept.")
    add("--student_init", choices=["teacher", "random"], default="teacher", help="Where the student starts: with its "
        "pretrained weights, the teacher's unless --pretrained_student_model is given; or with random ones, which "
        "collapse in the paper (Table 1c, FID 293.6) and are here for that comparison.")


def _lora(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("LoRA").add_argument
    add("--use_lora", action="store_true", help="Train an adapter only. On the teacher's own repo the teacher is the "
        "same UNet with the adapter off: one copy in memory.")
    add("--lora_rank", type=int, default=64, help="Of each adapted weight's update.")
    add("--lora_alpha", type=float, default=None, help="Scale times rank; --lora_rank where not given, a scale of 1.")
    add("--lora_dropout", type=float, default=0.0, help="Share of the adapter's inputs that is dropped in training.")
    add("--lora_target_modules", nargs="+", default=None, metavar="NAME", help="Ends of the names of the modules to "
        "adapt. Default: all linear maps and convolutions of the UNet's blocks, as LCM-LoRA.")
    add("--fuse_lora", action="store_true", help="Also write the whole pipeline with the adapter fused in.")


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
    for kind in ("feature", "text", "image"):
        add(f"--discriminator_{kind}_model_revision", default=None,
            help=f"Branch, tag or commit of the Hub repo that --discriminator_{kind}_model names.")
    add("--discriminator_input_size", type=int, default=None, help="Side of F's input, pixels. Default 224, or F's own "
        "size where that is smaller; up to 518 for DINOv2.")
    add("--discriminator_learning_rate", type=float, default=1e-3, help="Of the heads. StyleGAN-T uses 2e-3.")
    add("--discriminator_adam_beta1", type=float, default=0.0, help="As StyleGAN-T.")
    add("--discriminator_adam_beta2", type=float, default=0.99, help="As StyleGAN-T.")
    add("--r1_gamma", type=float, default=1e-5, help="gamma of the R1 penalty on the heads' inputs (paper 3.2).")
    add("--condition_image_at_last_timestep", action="store_true", help="Keep c_img where the student's input is pure "
        "noise. By default it is zeroed there: the student cannot know x0, and would be pushed to the mean.")
    add("--discriminator_norm", choices=NORMS, default="virtual_batch", help="Of the heads: batch norm in virtual "
        "groups of 8 (StyleGAN-T); the same over groups of real and generated samples together, with which the "
        "discriminator learns faster; or group norm, which treats every sample by itself and suits small batches.")
    add("--reconstruct_real", action="store_true", help="Show the discriminator decode(encode(x0)) as real, not x0: "
        "where the autoencoder's traces are easy to see, it otherwise learns to see those, which the student cannot "
        "change. Costs one decoding without gradient.")
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
    add("--export_single_file", default=None, metavar="FILE", help="Also write the student as one .safetensors file in "
        "the original checkpoints' layout, which ComfyUI and other front ends load.")
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
    add("--hub_private_repo", action="store_true", default=None, help="Make the new repo private; a public one that "
        "exists is refused.")
    add("--push_every_checkpoint", action="store_true", help="Also push the student of each checkpoint, without "
        "optimizer state, to the branch `checkpoints`.")
    add("--hub_token", default=None, help="Token to push with; the one of `hf auth login` where not given.")


def _hardware(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("hardware").add_argument
    add("--mixed_precision", choices=["no", "fp16", "bf16"], default=None, help="Default: accelerate's configuration; "
        "where that says nothing, bf16 on a GPU that has it and float32 elsewhere.")
    add("--gradient_checkpointing", action="store_true", help="Recompute the student's and decoder's activations in "
        "the backward pass: less memory, more time.")
    add("--enable_xformers_memory_efficient_attention", action="store_true", help="xformers in the UNets (GPU only); "
        "torch's own attention otherwise.")
    add("--allow_tf32", action="store_true", help="Use TF32 for float32 matrix products and "
        "convolutions on Ampere GPUs and later, those of the discriminator's heads and of R1 included: faster, with 10 "
        "bits of mantissa, not 23. Without the flag they are computed in true float32.")
    add("--teacher_precision", choices=["fp32", "fp16", "bf16", "8bit", "4bit"], default=None, help="Of the teacher's "
        "UNet, and of the base under --use_lora: 8bit and 4bit (NF4) are bitsandbytes'. Default: the run's.")
    add("--decode_crop_size", type=int, default=None, help="Decode only a random square of so many pixels of each "
        "image for the losses, the same one of the real image; a multiple of 8. Decoding is most of a step's cost.")
    add("--decode_crop_halo", type=int, default=4, help="Latents decoded around --decode_crop_size and thrown away, so "
        "that the crop's border sees what surrounds it: 0 is cheapest, 8 nearly equals the full decode.")
    add("--pretrained_tiny_vae_model", default=None, help="An AutoencoderTiny of the student's latent space (such as "
        "madebyollin/taesd, madebyollin/taesdxl) that decodes for the losses. The published model keeps the full one.")
    add("--tiny_vae_revision", default=None, help="Branch, tag or commit of the Hub repo of "
        "--pretrained_tiny_vae_model.")
    add("--cache_dir_latents", default=None, help="Folder for latents, caption embeddings, c_text and c_img of the "
        "whole set: computed into it once, then read from it. Needs --center_crop and no --random_flip.")


# fmt: on
