"""Summary of the resolved configuration of a run, logged at its start."""

from discriminator import UNetFeatures
from training.options import Options
from training.options.derived import (
    guidance_scale,
    learning_rate,
    needs_teacher,
    warmup_probabilities,
    zero_snr_mode,
)
from training.options.method import NONE
from training.run.run import Run


def describe(run: Run) -> str:
    """Summarize a run in one line each for models, timesteps, discriminator, loss, batch, memory and length."""
    options, accelerator = run.options, run.accelerator
    student, optimization = run.schedules[0].prediction_type, options.optimization
    parameters = sum(p.numel() for p in run.players.trainable().values())
    lines = {
        "teacher": _teacher(run),
        "student": f"{options.models.pretrained_student_model or 'the same'} ({student}), {parameters / 1e6:.2f}M "
        f"trainable parameters from {options.models.student_init} weights",
        "timesteps": _timesteps(options, student),
        "discriminator": _discriminator(run),
        "loss": f"{options.method.adversarial_weight:g} L_adv + {options.method.distillation_weight:g} L_distill "
        f"({options.method.distillation_weighting}, {options.method.distillation_space}), "
        f"R1 gamma {options.discriminator.r1_gamma:g}",
        "batch": f"{run.effective_batch_size} = {optimization.train_batch_size} x {accelerator.num_processes} "
        f"processes x {optimization.gradient_accumulation_steps} accumulated, "
        f"{_updates(options)}of {run.num_samples or 'streamed'} "
        f"samples at {options.data.resolution} px",
        "memory": _memory(options),
        "run": f"{run.total_steps} iterations, learning rate {learning_rate(options):g} / "
        f"{options.discriminator.discriminator_learning_rate:g} (D), {accelerator.mixed_precision} on "
        f"{accelerator.device}, seed {run.state.seed}",
    }
    return "\n".join(f"  {name:<14}{text}" for name, text in lines.items())


def _timesteps(options: Options, prediction_type: str) -> str:
    method = options.method
    drawn = list(method.student_timestep_probabilities or ()) or "uniformly"
    warmup = f"{method.student_timestep_warmup_steps} iterations {list(warmup_probabilities(options))}, then "
    return (
        f"{list(method.student_timesteps)}, drawn {warmup if method.student_timestep_warmup_steps else ''}{drawn}, "
        f"zero terminal SNR by `{zero_snr_mode(options, prediction_type)}`"
    )


def _updates(options: Options) -> str:
    steps = options.discriminator.discriminator_steps
    return f"{steps} updates of D for one of the student, each on its own samples, " if steps > 1 else ""


def _teacher(run: Run) -> str:
    options = run.options
    if options.method.distillation_weight == 0 and needs_teacher(options):
        return f"{options.models.pretrained_teacher_model}, for the discriminator's features alone"
    if options.method.distillation_weight == 0:
        return "none: only the adversarial loss"
    low, high = options.method.teacher_timestep_range
    return (
        f"{options.models.pretrained_teacher_model} ({run.schedules[1].prediction_type}, guidance "
        f"{guidance_scale(options):g}, {options.method.teacher_steps} step, t in [{low}, {high}))"
    )


def _discriminator(run: Run) -> str:
    discriminator, own = run.players.losses.discriminator, run.options.discriminator
    if discriminator is None:
        return "none: only the distillation loss"
    parameters = sum(p.numel() for p in discriminator.heads.parameters())
    network = discriminator.feature_network
    if isinstance(network, UNetFeatures):
        caption = "not used" if own.discriminator_text_model == NONE else "pooled by the teacher's text encoder"
        return (
            f"latent, {parameters / 1e6:.2f}M parameters in {len(network.taps)} heads ({own.discriminator_norm} norm) "
            f"on the teacher's {' '.join(own.discriminator_taps)} blocks, t^ logit-normal "
            f"({own.discriminator_timestep_mean:g}, {own.discriminator_timestep_std:g}); caption {caption}"
        )
    return (
        f"{parameters / 1e6:.2f}M parameters in {network.num_taps} heads ({own.discriminator_norm} norm) on "
        f"{own.discriminator_feature_model} at {network.input_size} px; c_text {own.discriminator_text_model}, c_img "
        f"{own.discriminator_image_model}; real images {'reconstructed' if own.reconstruct_real else 'unchanged'}"
    )


def _memory(options: Options) -> str:
    hardware = options.hardware
    used = {
        "LoRA rank": options.lora.use_lora and options.lora.lora_rank,
        "teacher": hardware.teacher_precision,
        "gradient checkpointing": hardware.gradient_checkpointing,
        "8-bit Adam": options.optimization.use_8bit_adam,
        "decoded crop": hardware.decode_crop_size,
        "tiny decoder": hardware.pretrained_tiny_vae_model,
        "cache": hardware.cache_dir_latents,
    }
    parts = [name if value is True else f"{name} {value}" for name, value in used.items() if value]
    return ", ".join(parts) or "no memory-saving flags"
