"""The resolved configuration of a run in a few lines, for the start of the log."""

from dataclasses import dataclass

from training.options.derived import effective_batch_size, guidance_scale, learning_rate
from training.options.options import Options


@dataclass(frozen=True)
class Facts:
    """What the flags do not say by themselves.

    Attributes:
        teacher_prediction, student_prediction: prediction types.
        zero_snr: how the student starts from pure noise, "terminal" or "rescale".
        student_parameters, head_parameters: how many train.
        num_taps, input_size: of the discriminator, 0 without one; pixels.
        num_samples: rows of the data set, None for a stream.
        total_steps: iterations.
        seed: of the run.
        device, precision, processes: of accelerate.
    """

    teacher_prediction: str
    student_prediction: str
    zero_snr: str
    student_parameters: int
    head_parameters: int
    num_taps: int
    input_size: int
    num_samples: int | None
    total_steps: int
    seed: int
    device: str
    precision: str
    processes: int


def describe(options: Options, facts: Facts) -> str:
    """One line per subject: models, timesteps, discriminator, loss, batch, memory, run."""
    lines = {
        "teacher": _teacher(options, facts),
        "student": f"{options.models.pretrained_student_model or 'the same'} ({facts.student_prediction}), "
        f"{facts.student_parameters / 1e6:.2f}M trainable parameters from {options.models.student_init} weights",
        "timesteps": f"{list(options.method.student_timesteps)}, drawn "
        f"{list(options.method.student_timestep_probabilities or ()) or 'uniformly'}, "
        f"zero terminal SNR by `{facts.zero_snr}`",
        "discriminator": _discriminator(options, facts),
        "loss": f"{options.method.adversarial_weight:g} L_adv + {options.method.distillation_weight:g} L_distill "
        f"({options.method.distillation_weighting}, {options.method.distillation_space}), "
        f"R1 gamma {options.discriminator.r1_gamma:g}",
        "batch": f"{effective_batch_size(options, facts.processes)} = {options.optimization.train_batch_size} x "
        f"{facts.processes} processes x {options.optimization.gradient_accumulation_steps} accumulated, of "
        f"{facts.num_samples or 'streamed'} samples at {options.data.resolution} px",
        "memory": _memory(options),
        "run": f"{facts.total_steps} iterations, learning rate {learning_rate(options):g} / "
        f"{options.discriminator.discriminator_learning_rate:g} (D), {facts.precision} on {facts.device}, "
        f"seed {facts.seed}",
    }
    return "\n".join(f"  {name:<14}{text}" for name, text in lines.items())


def _teacher(options: Options, facts: Facts) -> str:
    if options.method.distillation_weight == 0:
        return "none: adversarial training alone"
    low, high = options.method.teacher_timestep_range
    return (
        f"{options.models.pretrained_teacher_model} ({facts.teacher_prediction}, guidance {guidance_scale(options):g}, "
        f"{options.method.teacher_steps} step, t in [{low}, {high}))"
    )


def _discriminator(options: Options, facts: Facts) -> str:
    if options.method.adversarial_weight == 0:
        return "none: distillation alone"
    own = options.discriminator
    return (
        f"{facts.head_parameters / 1e6:.2f}M parameters in {facts.num_taps} heads ({own.discriminator_norm} norm) on "
        f"{own.discriminator_feature_model} at {facts.input_size} px; c_text {own.discriminator_text_model}, c_img "
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
    return ", ".join(parts) or "no flag that saves memory is in use"
