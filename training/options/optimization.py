"""Flags of optimizers, learning rates and the length of a run."""

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
        16, "Batch size per device and micro-batch.", resume=Resume.FIXED_FOR_STREAMS, range=AT_LEAST_ONE
    )
    gradient_accumulation_steps: int = flag(
        1,
        "Number of micro-batches per iteration. If there are several, each is sampled twice: the discriminator takes "
        "its step before the student's first gradient, as with one large batch.",
        resume=Resume.FIXED_FOR_STREAMS,
        range=AT_LEAST_ONE,
    )
    num_train_epochs: int = flag(
        100, "Number of passes over the data set. Ignored if --max_train_steps is given.", resume=BY_SCHEDULE,
        range=AT_LEAST_ONE,
    )  # fmt: skip
    max_train_steps: int | None = flag(
        None, "Number of iterations, with one discriminator step and one student step each.", resume=BY_SCHEDULE,
        range=AT_LEAST_ONE,
    )  # fmt: skip
    learning_rate: float | None = flag(
        None,
        "Learning rate of the student. By default 1e-5, and 1e-4 with --use_lora. Full training uses 1e-6 to 1e-5.",
        resume=FIXED,
        range=POSITIVE,
    )
    scale_lr: bool = flag(
        False, "Multiply both learning rates by devices x accumulation steps x batch size.", resume=FIXED
    )
    lr_scheduler: str = flag("constant", "Schedule of both learning rates.", resume=FIXED, choices=LR_SCHEDULERS)
    lr_warmup_steps: int = flag(
        500, "Number of warm-up iterations, for schedules that have a warm-up.", resume=FIXED, range=NOT_NEGATIVE
    )
    lr_num_cycles: int = flag(1, "Number of hard restarts of cosine_with_restarts.", resume=FIXED, range=AT_LEAST_ONE)
    lr_power: float = flag(1.0, "Power of the polynomial schedule.", resume=FIXED)
    use_8bit_adam: bool = flag(
        False,
        "Use AdamW8bit of bitsandbytes for the student; its state takes a quarter of the memory.",
        resume=FIXED,
        saves="three quarters of the optimizer's state",
    )
    adam_beta1: float = flag(0.9, "beta1 of the student's AdamW.", resume=FIXED, range=FRACTION)
    adam_beta2: float = flag(0.999, "beta2 of the student's AdamW.", resume=FIXED, range=FRACTION)
    adam_weight_decay: float = flag(
        1e-2, "Weight decay of the student's AdamW; the heads have none.", resume=FIXED, range=NOT_NEGATIVE
    )
    adam_epsilon: float = flag(1e-8, "epsilon of both optimizers.", resume=FIXED, range=POSITIVE)
    max_grad_norm: float = flag(
        1.0, "Maximum gradient norm, of student and heads separately.", resume=FIXED, range=POSITIVE
    )
    use_ema: bool = flag(False, "Publish and validate an exponential moving average of the student.", resume=FIXED)
    ema_decay: float = flag(0.999, "Decay of the average per iteration.", resume=FIXED, range=FRACTION)
    max_skipped_steps: int = flag(
        5,
        "A non-finite loss or gradient skips the step. The run stops after this many skipped steps in a row.",
        resume=FREE,
        range=AT_LEAST_ONE,
    )
    seed: int | None = flag(
        None,
        "Seed of the data order, the noise and the initialization. If it is not given, one is drawn and printed.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
