"""The evaluator and the discriminator's feature network of a captioned folder.

A network must not be judged by the features it was trained against, so they share neither kind, seed nor task: the
feature network is a transformer in DINOv2's layout that learns from captions and from masked patches, the evaluator a
residual network that learns from attributes and from how an image was degraded.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ResNetForImageClassification

from evaluation.tiny.split import Split
from examples.tiny.captioned.gates import Course, Gate
from examples.tiny.captioned.plan import Plan
from examples.tiny.captioned.reading import LABEL, Attributes, find_attributes, informative_words, mark_words
from examples.tiny.images import blur, make_processor, normalize, patchify, uniform, warp
from examples.tiny.loop import draw, fit
from examples.tiny.models import make_dinov2, make_residual_classifier
from examples.tiny.vision import embed_captions

EVALUATOR_BATCH_SIZE = 32
FEATURE_BATCH_SIZE = 32
EVALUATOR_LEARNING_RATE = 3e-3
FEATURE_LEARNING_RATE = 1.5e-3
PATCH_SIZE = 8  # of the feature network, whose cost as a discriminator goes with the number of patches
MASKED_SHARE = 0.6
CAPTION_TEMPERATURE = 0.07
WORD_WEIGHT = 5.0
ADVICE = "Write captions that say what is visible, in words that recur, or give more images of each"
EVALUATOR_GATES = (Gate("agreement", 0.7, ADVICE),)
FEATURE_GATES = (Gate("word_accuracy", 0.85, ADVICE),)


# --- the evaluator --------------------------------------------------------------------------------


class SharedClassifier(nn.Module):
    """A linear classifier of whole captions whose weights are sums over the captions' words.

    What is learnt of "blue" in one caption holds in all of them, also in those that training does not have. Classes
    that have the same words as another one, or none, have weights of their own besides. The sums are plain numbers in
    the end: `weights()` is what an ordinary linear layer needs.

    Args:
        width: of the features.
        marks: `(K, V)`, which of V words each of K classes has.
    """

    marks: torch.Tensor  # buffers
    ambiguous: torch.Tensor  # (K,), 1 for classes with weights of their own

    def __init__(self, width: int, marks: torch.Tensor):
        super().__init__()
        _, group, sizes = marks.unique(dim=0, return_inverse=True, return_counts=True)
        alone = (sizes[group] == 1) & marks.any(dim=1)
        self.register_buffer("marks", marks, persistent=False)
        self.register_buffer("ambiguous", 1.0 - alone.float(), persistent=False)
        self.words = nn.Linear(width, marks.shape[1])
        self.own = nn.Linear(width, len(marks))

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `(K, width)` and bias `(K,)`."""
        weight = self.marks @ self.words.weight + self.ambiguous[:, None] * self.own.weight
        return weight, self.marks @ self.words.bias + self.ambiguous * self.own.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, width)` to `(B, K)`."""
        return F.linear(features, *self.weights())


def make_marks(attributes: Attributes) -> torch.Tensor:
    """`(K, V)`, V at least 1: the words that each of the evaluator's K classes shares with others.

    They are all 0 for attributes of their own and where no two captions share a word.
    """
    names = attributes.logit_names
    words = informative_words(names) if list(attributes.values) == [LABEL] else []
    return mark_words(names, words) if words else torch.zeros(len(names), 1)


@torch.no_grad()
def look(evaluator: ResNetForImageClassification, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The features `(N, width)` and logits `(N, K)` of `pixels (N, 3, H, W)` in [-1, 1].

    The feature is the mean of the last stage over the image, as in `evaluation.metrics.Evaluator`.
    """
    features = torch.cat([evaluator.resnet(normalize(chunk)).pooler_output.flatten(1) for chunk in pixels.split(128)])
    return features, evaluator.classifier(features)


def train_evaluator(out: Path, train: Split, test: Split, plan: Plan, course: Course) -> dict[str, float]:
    """Train and save a `ResNetForImageClassification` in `out`. Returns its figures.

    Its logits are those of all attributes, one after another; `config.attribute_values` names them. Its features
    also learn to show a thumbnail of the clean image and how much blur and noise was laid over it: a Frechet distance
    on features that knew the attributes alone would miss blur and sameness.

    Raises:
        GateMissedError: attributes of held-out images are not read well enough.
    """
    attributes = find_attributes(train, test)
    targets, test_targets = attributes.targets(train), attributes.targets(test)
    model = make_residual_classifier(attributes.logit_names, plan.evaluator_widths, plan.resolution)
    model.config.attribute_values = {name: list(values) for name, values in attributes.values.items()}
    width = plan.evaluator_widths[-1]
    classify = SharedClassifier(width, make_marks(attributes))
    to_thumbnail, to_damage = nn.Linear(width, 3 * 8 * 8), nn.Linear(width, 2)

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(targets), EVALUATOR_BATCH_SIZE)
        clean = warp(train.pixels[rows], degrees=4, scale=0.04, shift_px=3)
        # Three images in four stay free of either: those are what it will mostly see.
        sigma = uniform(clean, -3, 1).clamp_min(0)
        noise = uniform(clean, -0.6, 0.2).clamp_min(0)
        damaged = blur(clean, sigma) + noise * torch.randn_like(clean)
        features = model.resnet(normalize(damaged)).pooler_output.flatten(1)
        logits = classify(features).split(attributes.sizes, dim=1)
        named = sum(F.cross_entropy(part, targets[rows, a], label_smoothing=0.03) for a, part in enumerate(logits))
        thumbnail = F.mse_loss(to_thumbnail(features), F.adaptive_avg_pool2d(clean, 8).flatten(1))
        damage = F.mse_loss(to_damage(features), torch.cat([sigma, noise], dim=1).flatten(1))
        return named + thumbnail + damage

    def fit_round(part: int, iterations: int) -> None:
        settings = {"learning_rate": EVALUATOR_LEARNING_RATE, "checkpoint": course.checkpoint, "part": part}
        modules = [model.resnet, classify, to_thumbnail, to_damage]
        fit(modules, loss_of_batch, iterations=iterations, title="evaluator", **settings)

    def measure() -> dict[str, float]:
        weight, bias = classify.weights()
        model.get_parameter("classifier.1.weight").data.copy_(weight)
        model.get_parameter("classifier.1.bias").data.copy_(bias)
        return attributes.agreement(look(model, test.pixels)[1], test_targets)

    figures = course.run(fit_round, measure, EVALUATOR_GATES)
    model.save_pretrained(out)
    make_processor(plan.resolution).save_pretrained(out)
    return figures


def read_attributes(evaluator: ResNetForImageClassification) -> Attributes:
    """The attributes that a trained evaluator reads."""
    return Attributes({name: tuple(values) for name, values in evaluator.config.attribute_values.items()})


# --- the feature network --------------------------------------------------------------------------


def word_accuracy(logits: torch.Tensor, marks: torch.Tensor) -> float:
    """Share of captions' words, both that are there and that are not, told rightly, each half counting the same.

    Args:
        logits: `(N, V)`, above 0 for a word that is there.
        marks: `(N, V)`, 1 for a word that is there.
    """
    right = ((logits > 0) == (marks > 0.5)).double()
    return (right[marks > 0.5].mean().item() + right[marks <= 0.5].mean().item()) / 2


def train_feature_network(
    out: Path, clip_folder: Path, train: Split, test: Split, plan: Plan, course: Course
) -> dict[str, float]:
    """Train and save a `Dinov2Model` in `out`. Returns its figures.

    The class token learns the caption's words and its CLIP embedding; the patch tokens restore patches that are masked
    or drowned in noise, so that they carry the detail a discriminator needs.

    Raises:
        GateMissedError: the words of held-out images' captions are not told.
    """
    captions = sorted(set(train.captions))
    index = {caption: k for k, caption in enumerate(captions)}
    caption_ids = torch.tensor([index[caption] for caption in train.captions])
    texts = embed_captions(clip_folder, captions)
    words = informative_words(train.captions)
    marks, test_marks = mark_words(captions, words), mark_words(test.captions, words)
    sizes = {"width": plan.vision_width, "layers": plan.vision_layers, "image_size": plan.resolution}
    model = make_dinov2(patch_size=PATCH_SIZE, **sizes)
    width, patches = model.config.hidden_size, (plan.resolution // PATCH_SIZE) ** 2
    to_text, to_patch = nn.Linear(width, texts.shape[1]), nn.Linear(width, 3 * PATCH_SIZE**2)
    to_words = nn.Linear(width, len(words))

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(caption_ids), FEATURE_BATCH_SIZE)
        ids = caption_ids[rows]
        clean = warp(train.pixels[rows], degrees=3, scale=0.05, shift_px=3)
        noisy = clean + uniform(clean, 0, 0.1) * torch.randn_like(clean)
        masked = torch.rand(len(rows), patches) < MASKED_SHARE * (torch.rand(len(rows), 1) < 0.5)
        tokens = model(normalize(noisy), bool_masked_pos=masked).last_hidden_state
        # Among the captions of the batch: all of them at once would cost more than the network itself.
        known, where = ids.unique(return_inverse=True)
        logits = F.normalize(to_text(tokens[:, 0]), dim=-1) @ texts[known].T / CAPTION_TEMPERATURE
        loss = F.cross_entropy(logits, where) + 4 * F.mse_loss(to_patch(tokens[:, 1:]), patchify(clean, PATCH_SIZE))
        if words:
            loss = loss + WORD_WEIGHT * F.binary_cross_entropy_with_logits(to_words(tokens[:, 0]), marks[ids])
        return loss

    def fit_round(part: int, iterations: int) -> None:
        settings = {"learning_rate": FEATURE_LEARNING_RATE, "checkpoint": course.checkpoint, "part": part}
        fit(
            [model, to_text, to_patch, to_words],
            loss_of_batch,
            iterations=iterations,
            title="feature network",
            **settings,
        )

    @torch.no_grad()
    def measure() -> dict[str, float]:
        tokens = torch.cat([model(normalize(chunk)).last_hidden_state for chunk in test.pixels.split(128)])
        restored = F.mse_loss(to_patch(tokens[:, 1:]), patchify(test.pixels, PATCH_SIZE)).item()
        told = word_accuracy(to_words(tokens[:, 0]), test_marks) if words else 1.0
        return {"word_accuracy": told, "patch_mse": restored}

    figures = course.run(fit_round, measure, FEATURE_GATES)
    model.save_pretrained(out)
    make_processor(plan.resolution).save_pretrained(out)
    return figures
