"""Metrics against closed forms, the evaluator against its backbone."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor

from evaluation import Evaluator, alignment, diversity, frechet_distance
from examples.tiny.models import make_classifier


def gaussian(mean: torch.Tensor, root: torch.Tensor, count: int = 200) -> torch.Tensor:
    """`(count, D)` points whose sample mean is `mean (D,)` and whose unbiased covariance is `root^T root`, exactly."""
    noise = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    noise -= noise.mean(dim=0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T.cov())).T
    return white @ root + mean


def symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T


def test_frechet_distance_of_diagonal_gaussians():
    """Where the covariances commute, the distance is |m - m'|^2 + sum (s - s')^2."""
    real = gaussian(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.5]).double().diag())
    fake = gaussian(torch.tensor([1.0, 0.0, 4.0]), torch.tensor([3.0, 2.0, 1.0]).double().diag(), count=150)
    assert frechet_distance(real, fake) == pytest.approx((4 + 1) + (4 + 0 + 0.25), rel=1e-9)


def test_frechet_distance_of_correlated_gaussians():
    """In general tr (S S')^(1/2) = tr (R S' R)^(1/2), R the symmetric root of S: another way to the same number."""
    root, other = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = torch.arange(5).double()
    first, second = root.T @ root, other.T @ other
    half = symmetric_root(first)
    expected = shift.square().sum() + torch.trace(first + second - 2 * symmetric_root(half @ second @ half))
    actual = frechet_distance(gaussian(torch.zeros(5), root), gaussian(shift, other, count=300))
    assert actual == pytest.approx(expected.item(), rel=1e-8)


def test_frechet_distance_survives_a_large_common_offset():
    """float32 sums of squares would drown a covariance of 1 under a mean of 3000."""
    offset = torch.full((4,), 3000.0)
    real, fake = gaussian(offset, torch.eye(4).double()), gaussian(offset, 2 * torch.eye(4).double(), count=150)
    assert frechet_distance(real.float(), fake.float()) == pytest.approx(4.0, rel=1e-2)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4, 3), (1, 3))])
def test_frechet_distance_refuses_what_has_no_covariance(shapes):
    """The message shows the shapes."""
    real, fake = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=rf"\({shapes[0][0]}, {shapes[0][1]}\)"):
        frechet_distance(real, fake)


def test_alignment_counts_matches():
    """Predictions 2, 0, 1, 1 against labels 2, 0, 1, 0: three in four are right."""
    logits = torch.tensor([[0.0, 1, 2], [3, 1, 2], [-3, -1, -2], [0, 9, 1]])
    assert alignment(logits, torch.tensor([2, 0, 1, 0])) == 0.75


def test_diversity_of_a_right_triangle():
    """Sides 3, 4, 5 have the mean 4; a caption of one distance 2 weighs as much; a single image is left out."""
    features = torch.tensor([[0.0, 0], [10, 10], [3, 0], [10, 12], [0, 4], [99, 99]])
    groups = torch.tensor([7, 1, 7, 1, 7, 5])
    assert diversity(features, groups) == pytest.approx((4 + 2) / 2)


def test_diversity_of_one_picture_a_caption_is_zero():
    """Captions that differ from one another do not hide that their own images are all the same."""
    features = torch.tensor([[1.0, 2], [5, 6]]).repeat_interleave(3, dim=0)
    assert diversity(features, torch.tensor([0, 0, 0, 1, 1, 1])) == 0


def test_diversity_needs_a_pair():
    with pytest.raises(ValueError, match="3 captions of 1 image"):
        diversity(torch.zeros(3, 2), torch.arange(3))


@pytest.fixture
def evaluator(tmp_path) -> Evaluator:
    torch.manual_seed(0)
    model = make_classifier(["one", "two", "three"], width=32, layers=2)
    torch.nn.init.normal_(model.dinov2.layernorm.weight)  # an untrained LayerNorm would hide that it is missing
    model.save_pretrained(tmp_path)
    BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    return Evaluator.from_pretrained(str(tmp_path))


def test_evaluator_is_its_normalized_backbone(evaluator):
    """Features are the backbone's pooled output and logits the classifier's, for images normalized by hand."""
    images = torch.rand(4, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    pixel_values = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    features, logits = evaluator(images)
    torch.testing.assert_close(features, evaluator.model.dinov2(pixel_values).pooler_output)
    torch.testing.assert_close(logits, evaluator.model(pixel_values).logits)
    assert features.shape == (4, 32)
    assert not any(parameter.requires_grad for parameter in evaluator.parameters())


def test_evaluator_sees_other_sizes_at_its_own(evaluator):
    """A larger image is reduced to 32 pixels with antialiasing, as PIL does it."""
    large = torch.rand(1, 3, 80, 80)
    channels = [Image.fromarray(channel.numpy()) for channel in large[0]]  # mode "F": PIL filters in float
    small = np.stack([np.asarray(channel.resize((32, 32), Image.Resampling.BICUBIC)) for channel in channels])
    (features, _), (expected, _) = evaluator(large), evaluator(torch.from_numpy(small)[None].clamp(0, 1))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
