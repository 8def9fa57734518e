"""Flags for the method: student, teacher and their losses (paper 3.1 and 3.3), and the discriminator (paper 3.2)."""

from dataclasses import dataclass
from typing import ClassVar

from discriminator import NORMS
from distillation.objectives import WEIGHTINGS
from distillation.student import DEFAULT_STUDENT_TIMESTEPS
from training.options.declaration import AT_LEAST_ONE, FRACTION, NOT_NEGATIVE, POSITIVE, Resume, flag

FIXED = Resume.FIXED
NONE = "none"  # how the command line says "without this network"
DEFAULT_TAPS = ("down", "mid")


@dataclass(frozen=True)
class MethodOptions:
    """Student, teacher and their losses."""

    title: ClassVar[str] = "method (paper 3.1 and 3.3)"

    student_timesteps: tuple[int, ...] = flag(
        tuple(DEFAULT_STUDENT_TIMESTEPS),
        "Timesteps that the student is trained on (T_student in the paper), in ascending order. The last one must be "
        "the last timestep of the schedule (999). The reference sampler of the released models uses 699 799 899 999.",
        resume=FIXED,
        metavar="S",
    )
    student_timestep_probabilities: tuple[float, ...] | None = flag(
        None,
        "Probability of each of the --student_timesteps; the probabilities must sum to 1. Uniform by default, as in "
        "the paper.",
        resume=FIXED,
        metavar="P",
    )
    student_timestep_warmup_steps: int = flag(
        0,
        "Number of first iterations in which the student's timesteps are drawn with "
        "--student_timestep_warmup_probabilities. Not in the paper; LADD begins with the less noisy half (recalled, "
        "not checked against its text).",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    student_timestep_warmup_probabilities: tuple[float, ...] | None = flag(
        None,
        "Probability of each of --student_timesteps during --student_timestep_warmup_steps. By default the less noisy "
        "half, evenly: 0.5 0.5 0 0 for four timesteps.",
        resume=FIXED,
        metavar="P",
    )
    zero_terminal_snr: str | None = flag(
        None,
        "How the student's input becomes pure noise at the last timestep. `rescale` rescales the betas to zero "
        "terminal SNR (2305.08891; for v_prediction and sample students); `terminal` keeps the schedule and replaces "
        "the input at the last timestep by noise. Defaults to `terminal` for epsilon students and to `rescale` for "
        "others.",
        resume=FIXED,
        choices=("terminal", "rescale"),
    )
    adversarial_weight: float = flag(
        1.0,
        "Weight of the adversarial loss L_adv. 0 trains without a discriminator.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    distillation_weight: float = flag(
        2.5,
        "Weight of the distillation loss L_distill (lambda in Eq. 1). 0 trains without a teacher.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    distillation_weighting: str = flag(
        "exponential",
        "Weighting c(t) of the distillation loss in Eq. 4. The paper uses `exponential` in its ablations and `nfsd` "
        "for its final models.",
        resume=FIXED,
        choices=WEIGHTINGS,
    )
    distillation_space: str = flag(
        None,
        "Space in which L_distill is computed. The paper found pixels more stable; `latent` saves one decoding. By "
        "default pixel, and latent with --discriminator latent, where nothing else needs pixels.",
        resume=FIXED,
        choices=("pixel", "latent"),
        saves="one decoding",
    )
    teacher_guidance_scale: float | None = flag(
        None,
        "Classifier-free guidance scale of the teacher's target. 1 means no guidance; guidance costs a second forward "
        "pass of the teacher. Defaults to 1, or to 7.5 with --distillation_weighting nfsd.",
        resume=FIXED,
    )
    teacher_steps: int = flag(
        1, "Number of DDIM steps of the teacher. One is enough according to Table 1f of the paper.", resume=FIXED,
        range=AT_LEAST_ONE,
    )  # fmt: skip
    teacher_timestep_range: tuple[int, int] = flag(
        (20, 980),
        "Range [LOW, HIGH) from which the teacher's timestep t of Eq. 4 is drawn uniformly.",
        resume=FIXED,
        metavar=("LOW", "HIGH"),
    )
    negative_prompt: str | None = flag(
        None,
        "Negative prompt for the guidance of the teacher. Defaults to the empty prompt, or with "
        "--distillation_weighting nfsd to the negative prompt of the NFSD paper.",
        resume=FIXED,
    )


@dataclass(frozen=True)
class DiscriminatorOptions:
    """Feature network, conditions and heads."""

    title: ClassVar[str] = "discriminator (paper 3.2)"

    discriminator: str = flag(
        "pixel",
        "What the discriminator judges: `pixel` is the paper's, a vision transformer on decoded images; `latent` is "
        "LADD's (2403.12015), the teacher's UNet on latents at a random noise level: nothing is decoded, and images "
        "may have any size.",
        resume=FIXED,
        choices=("pixel", "latent"),
    )
    discriminator_taps: tuple[str, ...] = flag(
        DEFAULT_TAPS,
        "Parts of the teacher's UNet after whose attention blocks the latent discriminator's heads are: down, mid, up, "
        "or single blocks such as down.1. Its forward ends at the last of them, so fewer and earlier ones cost less.",
        resume=FIXED,
        metavar="PART",
    )
    discriminator_timestep_mean: float = flag(
        1.0,
        "Mean m of the noise levels at which the latent discriminator judges: t^ / 1000 is the logistic function of a "
        "Gaussian. Larger is noisier: global structure instead of texture. LADD's 1 is recalled, not checked against "
        "its text.",
        resume=FIXED,
    )
    discriminator_timestep_std: float = flag(
        1.0,
        "Standard deviation of that Gaussian. LADD's 1 is recalled, not checked against its text.",
        resume=FIXED,
        range=POSITIVE,
    )
    discriminator_feature_model: str = flag(
        "facebook/dinov2-small",
        "Hub id or folder of the frozen vision transformer F that extracts the discriminator's features: DINOv2, "
        "DINOv1 (facebook/dino-vits16) or CLIP (Table 1a).",
        resume=FIXED,
    )
    discriminator_text_model: str = flag(
        "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        "Text encoder of c_text, a CLIP with projection; `none` disables this condition (Table 1b). With "
        "--discriminator latent the default is the teacher's own pooled caption, and only `none` may be given.",
        resume=FIXED,
    )
    discriminator_image_model: str = flag(
        "facebook/dinov2-large",
        "Hub id or folder of the image encoder that computes the condition c_img. `none` disables this condition "
        "(Table 1b).",
        resume=FIXED,
    )
    discriminator_feature_model_revision: str | None = flag(
        None, "Branch, tag or commit of the Hub repo of --discriminator_feature_model.", resume=FIXED
    )
    discriminator_text_model_revision: str | None = flag(
        None, "Branch, tag or commit of the Hub repo of --discriminator_text_model.", resume=FIXED
    )
    discriminator_image_model_revision: str | None = flag(
        None, "Branch, tag or commit of the Hub repo of --discriminator_image_model.", resume=FIXED
    )
    discriminator_input_size: int | None = flag(
        None,
        "Height and width in pixels of the input of the feature network F, at most 518 for DINOv2. Defaults to 224, or "
        "to the native size of F if that is smaller.",
        resume=FIXED,
        range=AT_LEAST_ONE,
    )
    discriminator_steps: int = flag(
        1,
        "Updates of the discriminator for each update of the student, each on samples of its own: an iteration reads "
        "this many times as many samples. Each additional update costs one forward of student and decoder and the "
        "discriminator's own work. The paper uses 1, public recipes 1 to 10.",
        resume=FIXED,
        range=AT_LEAST_ONE,
    )
    discriminator_learning_rate: float = flag(
        1e-3, "Learning rate of the discriminator's heads. StyleGAN-T uses 2e-3.", resume=FIXED, range=POSITIVE
    )
    discriminator_adam_beta1: float = flag(
        0.0,
        "The beta1 parameter of the Adam optimizer for the discriminator's heads. The default is that of StyleGAN-T.",
        resume=FIXED,
        range=FRACTION,
    )
    discriminator_adam_beta2: float = flag(
        0.99,
        "The beta2 parameter of the Adam optimizer for the discriminator's heads. The default is that of StyleGAN-T.",
        resume=FIXED,
        range=FRACTION,
    )
    r1_gamma: float = flag(
        1e-5,
        "Weight of the R1 gradient penalty (gamma in Eq. 3), which is taken with respect to the heads' inputs.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    condition_image_at_last_timestep: bool = flag(
        False,
        "Keep the condition c_img when the student's input is pure noise. By default, it is set to zero there, because "
        "such an input contains nothing of x0 and the student would be pushed towards the mean.",
        resume=FIXED,
    )
    discriminator_norm: str = flag(
        "virtual_batch",
        "Normalization in the heads. `virtual_batch` is batch norm over groups of 8 samples (StyleGAN-T). "
        "`mixed_batch` is the same with real and generated samples in each group, and the discriminator learns faster "
        "with it. `group` is group norm, which normalizes each sample separately and suits small batches.",
        resume=FIXED,
        choices=NORMS,
    )
    reconstruct_real: bool = flag(
        False,
        "Use decode(encode(x0)) instead of x0 as the real image of the discriminator. Otherwise, if the autoencoder "
        "leaves visible artifacts, the discriminator learns to detect them although the student cannot avoid them. "
        "Costs one decoding without gradients.",
        resume=FIXED,
    )
    no_diffaugment: bool = flag(False, "Do not augment the discriminator's images (DiffAugment).", resume=FIXED)

    @property
    def is_latent(self) -> bool:
        """Whether it judges latents."""
        return self.discriminator == "latent"
