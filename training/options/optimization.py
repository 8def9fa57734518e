"""Flags for the optimizers, learning rates and length of a run."""

from dataclasses import dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, FRACTION, NOT_NEGATIVE, POSITIVE, Resume, flag

FIXED, FREE, BY_SCHEDULE = Resume.FIXED, Resume.FREE, Resume.FIXED_BY_SCHEDULE
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimizers, learning rates and the length of a run."""

    title: ClassVar[str] = "optimization"

    train_batch_size: int = flag(
        16, "Batch size (per device) of a micro-batch.", resume=Resume.FIXED_FOR_STREAMS, range=AT_LEAST_ONE
    )
    gradient_accumulation_steps: int = flag(
        1,
        "Number of micro-batches to accumulate per iteration. With more than one, the student samples each micro-batch "
        "twice, because the discriminator is updated before the student's first backward pass, as with one large "
        "batch.",
        resume=Resume.FIXED_FOR_STREAMS,
        range=AT_LEAST_ONE,
    )
    num_train_epochs: int = flag(
        100, "Number of epochs to train for. Ignored if --max_train_steps is given.", resume=BY_SCHEDULE,
        range=AT_LEAST_ONE,
    )  # fmt: skip
    max_train_steps: int | None = flag(
        None,
        "Total number of iterations, each with one discriminator step and one student step. Overrides "
        "--num_train_epochs.",
        resume=BY_SCHEDULE,
        range=AT_LEAST_ONE,
    )
    learning_rate: float | None = flag(
        None,
        "Learning rate of the student. Defaults to 1e-5, or to 1e-4 with --use_lora. 1e-6 to 1e-5 is usual for full "
        "training.",
        resume=FIXED,
        range=POSITIVE,
    )
    scale_lr: bool = flag(
        False,
        "Scale both learning rates by the number of devices, gradient accumulation steps and batch size.",
        resume=FIXED,
    )
    lr_scheduler: str = flag("constant", "Schedule of both learning rates.", resume=FIXED, choices=LR_SCHEDULERS)
    lr_warmup_steps: int = flag(
        500,
        "Number of iterations for the warmup of schedules that have one.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    lr_num_cycles: int = flag(1, "Number of hard restarts of cosine_with_restarts.", resume=FIXED, range=AT_LEAST_ONE)
    lr_power: float = flag(1.0, "Power factor of the polynomial schedule.", resume=FIXED)
    use_8bit_adam: bool = flag(
        False,
        "Use 8-bit Adam from bitsandbytes for the student. The optimizer state takes a quarter of the memory.",
        resume=FIXED,
        saves="three quarters of the optimizer's state",
    )
    adam_beta1: float = flag(0.9, "The beta1 parameter of the student's AdamW optimizer.", resume=FIXED, range=FRACTION)
    adam_beta2: float = flag(
        0.999, "The beta2 parameter of the student's AdamW optimizer.", resume=FIXED, range=FRACTION
    )
    adam_weight_decay: float = flag(
        1e-2,
        "Weight decay of the student's AdamW optimizer. The discriminator's heads have no weight decay.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    adam_epsilon: float = flag(1e-8, "Epsilon value of both optimizers.", resume=FIXED, range=POSITIVE)
    max_grad_norm: float = flag(
        1.0,
        "Maximum gradient norm. The gradients of the student and of the heads are clipped separately.",
        resume=FIXED,
        range=POSITIVE,
    )
    use_ema: bool = flag(
        False,
        "Keep an exponential moving average (EMA) of the student's weights, and use it for validation and publishing.",
        resume=FIXED,
    )
    ema_decay: float = flag(0.999, "Decay of the EMA per iteration.", resume=FIXED, range=FRACTION)
    max_skipped_steps: int = flag(
        5,
        "Number of consecutive skipped steps after which the run stops. A step with a non-finite loss or gradient is "
        "skipped.",
        resume=FREE,
        range=AT_LEAST_ONE,
    )
    seed: int | None = flag(
        None,
        "Seed for the data order, the noise and the initialization. By default, a random seed is drawn and printed.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
