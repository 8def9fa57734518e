"""The metrics as pure functions of features `(N, D)`, logits or labels `(N,)`, and the tiny world's evaluator."""

import contextlib
import io
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Dinov2ForImageClassification,
    ResNetForImageClassification,
)


class _Pooled(Protocol):
    pooler_output: Tensor


def pooled(output: object) -> Tensor:
    """The pooled embedding of an output of transformers, whose annotations allow a tuple or None as well."""
    return cast(_Pooled, output).pooler_output


class Evaluator(nn.Module):
    """A frozen image classifier with the architecture of DINOv2 or ResNet. Its logits measure agreement with the
    caption; its class token, or the mean of its last stage over the image, is the feature.

    Args:
        model: classifier with D-dimensional features and K labels; `config.image_size` is its image size.
        image_mean: per channel, for images in [0, 1].
        image_std: per channel, for images in [0, 1].
    """

    image_mean: Tensor  # buffers, (1, 3, 1, 1)
    image_std: Tensor

    def __init__(
        self,
        model: Dinov2ForImageClassification | ResNetForImageClassification,
        image_mean: list[float],
        image_std: list[float],
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("image_mean", torch.tensor(image_mean).view(1, -1, 1, 1))
        self.register_buffer("image_std", torch.tensor(image_std).view(1, -1, 1, 1))

    @classmethod
    def from_pretrained(cls, path: str) -> "Evaluator":
        """Load the classifier and its normalization from a folder or Hub repo with `preprocessor_config.json`."""
        processor = AutoImageProcessor.from_pretrained(path)
        return cls(AutoModelForImageClassification.from_pretrained(path), processor.image_mean, processor.image_std)

    @property
    def label_ids(self) -> dict[str, int]:
        """The index of each label among the logits."""
        return cast(dict[str, int], self.model.config.label2id)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images `(B, 3, H, W)` in [0, 1], of any size. Returns features `(B, D)` and logits `(B, K)`."""
        size = cast(int, self.model.config.image_size)  # ours are square
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        outputs = self.model((images - self.image_mean) / self.image_std, output_hidden_states=True)
        if isinstance(self.model, ResNetForImageClassification):
            return outputs.hidden_states[-1].mean(dim=(2, 3)), outputs.logits
        # The last hidden state is before the final LayerNorm; after it, this is the `pooler_output` of the backbone.
        return self.model.dinov2.layernorm(outputs.hidden_states[-1][:, 0]), outputs.logits


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to features (Heusel et al. 2017, Eq. 6), squared as always reported.

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), with unbiased covariances, in float64. It is zero for equal sets and
    biased upwards for small ones, so only distances with the same N and M can be compared.

    Args:
        real: `(N, D)` features of real images, N >= 2.
        fake: `(M, D)` features of generated images, M >= 2.

    Raises:
        ValueError: the widths differ, or there are fewer than two rows.
    """
    if real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise ValueError(
            f"frechet_distance needs (N, D) and (M, D) with N, M >= 2, got {tuple(real.shape)} and {tuple(fake.shape)}."
        )
    from torchmetrics.image.fid import FrechetInceptionDistance  # here, because it is an optional package

    identity = nn.Identity()  # torchmetrics requires a network, but the features are already computed
    identity.num_features = cast(Any, real.shape[1])  # torch annotates what a module is given as tensors
    metric = FrechetInceptionDistance(feature=identity, normalize=True).to(real.device)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def alignment(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose most likely class in `logits` `(N, K)` is that of the caption, `labels` `(N,)`."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def diversity(features: Tensor, groups: Tensor) -> float:
    """Mean Euclidean distance between two images of one caption, averaged over captions.

    Each pair within a caption counts once and all captions have the same weight, so the value does not depend on the
    number of images per caption, and real data can be compared with samples. Zero means that all images of a caption
    are the same.

    Args:
        features: `(N, D)` features.
        groups: `(N,)` integers, equal for images with the same caption. Captions with a single image are ignored.

    Raises:
        ValueError: no caption has two images.
    """
    members = [features[groups == group].double() for group in groups.unique()]
    distances = [torch.pdist(member).mean() for member in members if len(member) > 1]
    if not distances:
        raise ValueError(f"diversity needs a caption with at least 2 images, got {len(members)} captions of 1 image.")
    return torch.stack(distances).mean().item()


def clip_score(images: Tensor, texts: Tensor) -> float:
    """Mean cosine similarity of embeddings of images and prompts, `(N, D)` each, as in the paper (0.319).

    `CLIPScore` of torchmetrics is this value times 100, but version 1.9 does not support transformers 5.
    """
    return F.cosine_similarity(images.double(), texts.double()).mean().item()


def precision_recall_coverage(real: Tensor, fake: Tensor, nearest_k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), from prdc.

    Args:
        real: `(N, D)` features of real images.
        fake: `(M, D)` features of generated images.
        nearest_k: number k of nearest neighbours that defines the radius around a point; N and M must exceed k + 1.

    Raises:
        ValueError: there are too few points.
    """
    from prdc import compute_prdc  # here, because it is an optional package

    if min(len(real), len(fake)) < nearest_k + 2:
        raise ValueError(
            f"precision and recall at k = {nearest_k} need {nearest_k + 2} images, got {len(real)}, {len(fake)}."
        )
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints the numbers of points
        values = compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k)
    return {name: float(value) for name, value in values.items()}
