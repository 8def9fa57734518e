"""Two vision transformers in DINOv2's layout: the discriminator's feature network F and, apart from it, the evaluator.

A network must not be judged by the features it was trained against, so they share neither seed nor task: F learns
from captions and from masked patches, the evaluator from labels and from guessing how an image was degraded.
"""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, CLIPTokenizer, Dinov2ForImageClassification

from evaluation.metrics import pooled
from evaluation.tiny.split import Split
from examples.tiny.clip import tokenize
from examples.tiny.images import blur, make_processor, normalize, patchify, uniform, warp
from examples.tiny.loop import draw, fit
from examples.tiny.models import IMAGE_SIZE, make_classifier, make_dinov2

FEATURE_BATCH_SIZE = 32
FEATURE_LEARNING_RATE = 2e-3
FEATURE_ITERATIONS = 2600
EVALUATOR_BATCH_SIZE = 64
EVALUATOR_LEARNING_RATE = 3e-3
EVALUATOR_ITERATIONS = 800
MASKED_SHARE = 0.6
CAPTION_TEMPERATURE = 0.07


# --- the feature network --------------------------------------------------------------------------


@torch.no_grad()
def embed_captions(clip_folder: Path, captions: list[str]) -> torch.Tensor:
    """L2-normalized CLIP text embeddings `(K, width)`."""
    tokenizer, clip = CLIPTokenizer.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    return F.normalize(pooled(clip.get_text_features(tokenize(tokenizer, captions))), dim=-1)


def train_feature_network(
    out: Path, clip_folder: Path, train: Split, test: Split, iterations: int = FEATURE_ITERATIONS
) -> dict[str, float]:
    """Train and save a `Dinov2Model` in `out`. Returns measured quality.

    The class token learns which caption an image has, and with it digit, weight and lean; the patch tokens
    restore patches that are masked or drowned in noise, so that they carry the detail a discriminator needs.
    """
    captions = sorted(set(train.captions))
    texts = embed_captions(clip_folder, captions)
    caption_ids = torch.tensor([captions.index(caption) for caption in train.captions])
    # 8 pixels a patch: the scans have 8 in all, and the discriminator's cost goes with the number of patches.
    patch = 8
    model = make_dinov2(patch_size=patch)
    width = model.config.hidden_size
    to_text, to_patch = nn.Linear(width, texts.shape[1]), nn.Linear(width, 3 * patch * patch)
    labels = sorted(set(train.labels))
    targets = torch.tensor([labels.index(label) for label in train.labels])
    to_label = nn.Linear(width, len(labels))

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(caption_ids), FEATURE_BATCH_SIZE)
        clean = warp(train.pixels[rows], degrees=3, scale=0.05, shift_px=3)
        clean = clean * uniform(clean, 0.6, 1.2) + uniform(clean, -0.4, 0.4)
        noisy = clean + uniform(clean, 0, 0.1) * torch.randn_like(clean)
        masked = torch.rand(len(rows), (IMAGE_SIZE // patch) ** 2) < MASKED_SHARE * (torch.rand(len(rows), 1) < 0.5)
        tokens = model(normalize(noisy), bool_masked_pos=masked).last_hidden_state
        logits = F.normalize(to_text(tokens[:, 0]), dim=-1) @ texts.T / CAPTION_TEMPERATURE
        restored = F.mse_loss(to_patch(tokens[:, 1:]), patchify(clean, patch))
        named = F.cross_entropy(to_label(tokens[:, 0]), targets[rows])
        return named + F.cross_entropy(logits, caption_ids[rows]) + 4 * restored

    fit(
        [model, to_text, to_patch, to_label],
        loss_of_batch,
        iterations=iterations,
        learning_rate=FEATURE_LEARNING_RATE,
        title="feature network",
    )
    model.save_pretrained(out)
    make_processor().save_pretrained(out)
    owner = dict(zip(train.captions, train.labels))
    with torch.no_grad():
        tokens = model(normalize(test.pixels)).last_hidden_state
        nearest = (F.normalize(to_text(tokens[:, 0]), dim=-1) @ texts.T).argmax(dim=1).tolist()
        restored = F.mse_loss(to_patch(tokens[:, 1:]), patchify(test.pixels, patch)).item()
    right = sum(owner[captions[k]] == label for k, label in zip(nearest, test.labels))
    exact = sum(captions[k] == caption for k, caption in zip(nearest, test.captions))
    count = len(test.labels)
    return {"label_accuracy": right / count, "caption_accuracy": exact / count, "patch_mse": restored}


# --- the evaluator --------------------------------------------------------------------------------


@torch.no_grad()
def classify(evaluator: Dinov2ForImageClassification, pixels: torch.Tensor) -> list[str]:
    """The evaluator's label for each of `pixels (N, 3, 32, 32)` in [-1, 1]."""
    best = torch.cat([evaluator(normalize(chunk)).logits.argmax(dim=1) for chunk in pixels.split(256)])
    names = cast(dict[int, str], evaluator.config.id2label)
    return [names[k] for k in best.tolist()]


def train_evaluator(out: Path, train: Split, test: Split, iterations: int = EVALUATOR_ITERATIONS) -> dict[str, float]:
    """Train and save a `Dinov2ForImageClassification` in `out`. Returns measured quality.

    Beside the label, its class token learns to show a thumbnail of the clean image and how much blur and noise
    was laid over it: a Frechet distance on features that knew the label alone would miss blur and sameness.
    """
    labels = sorted(set(train.labels) | set(test.labels))
    targets = torch.tensor([labels.index(label) for label in train.labels])
    model = make_classifier(labels)
    width = model.config.hidden_size
    to_thumbnail, to_damage = nn.Linear(width, 3 * 8 * 8), nn.Linear(width, 2)

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(targets), EVALUATOR_BATCH_SIZE)
        clean = warp(train.pixels[rows], degrees=12, scale=0.12, shift_px=2)
        # Half of the images stay clean: those are what it will mostly see.
        sigma = uniform(clean, -1.5, 1.5).clamp_min(0)
        noise = uniform(clean, -0.4, 0.4).clamp_min(0)
        damaged = blur(clean, sigma) + noise * torch.randn_like(clean)
        tokens = model.dinov2(normalize(damaged)).last_hidden_state
        cls = tokens[:, 0]
        logits = model.classifier(torch.cat([cls, tokens[:, 1:].mean(dim=1)], dim=1))
        thumbnail = F.mse_loss(to_thumbnail(cls), F.avg_pool2d(clean, IMAGE_SIZE // 8).flatten(1))
        damage = F.mse_loss(to_damage(cls), torch.cat([sigma, noise], dim=1).flatten(1))
        return F.cross_entropy(logits, targets[rows], label_smoothing=0.05) + thumbnail + damage

    fit(
        [model, to_thumbnail, to_damage],
        loss_of_batch,
        iterations=iterations,
        learning_rate=EVALUATOR_LEARNING_RATE,
        title="evaluator",
    )
    model.save_pretrained(out)
    make_processor().save_pretrained(out)
    right = sum(a == b for a, b in zip(classify(model, test.pixels), test.labels))
    return {"label_accuracy": right / len(test.labels)}
