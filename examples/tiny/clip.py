"""The text encoder: a byte-pair tokenizer and a CLIP, trained on the captions and images at hand."""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from evaluation.metrics import pooled
from evaluation.tiny.split import Split
from examples.tiny.images import normalize, warp
from examples.tiny.loop import draw, fit
from examples.tiny.models import TEXT_WIDTH, make_clip, make_tokenizer

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
ITERATIONS = 600


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids `(B, L)`, padded and cut to the tokenizer's length, as the diffusers pipelines do."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def contrastive_loss(logits: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy on `logits (B, B)` (image x text), equal captions being equally right.

    With a few dozen distinct captions most batches repeat some; the identity as target would push equal
    texts apart. `caption_ids (B,)`: equal captions have equal ids.
    """
    same = (caption_ids[:, None] == caption_ids[None]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@torch.no_grad()
def nearest_caption_accuracy(clip: CLIPModel, tokens: torch.Tensor, owners: list[str], data: Split) -> float:
    """Share of `data` whose nearest caption belongs to its label. `tokens (K, L)`, caption k's label `owners[k]`."""
    texts = F.normalize(pooled(clip.get_text_features(tokens)), dim=-1)
    images = F.normalize(pooled(clip.get_image_features(normalize(data.pixels))), dim=-1)
    nearest = (images @ texts.T).argmax(dim=1).tolist()
    return sum(owners[k] == label for k, label in zip(nearest, data.labels)) / len(data.labels)


def train_clip(
    out: Path,
    train: Split,
    test: Split,
    iterations: int = ITERATIONS,
    width: int = TEXT_WIDTH,
    pad_token: str | None = None,
) -> dict[str, float]:
    """Train and save tokenizer and `CLIPModel` in `out`. Returns measured quality."""
    captions = sorted(set(train.captions))
    tokenizer = make_tokenizer(captions, pad_token=pad_token)
    clip = make_clip(tokenizer, width)
    tokens = tokenize(tokenizer, captions)
    caption_ids = torch.tensor([captions.index(caption) for caption in train.captions])

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(caption_ids), BATCH_SIZE)
        ids = caption_ids[rows]
        images = normalize(warp(train.pixels[rows], degrees=5, scale=0.1, shift_px=2))
        output = clip(input_ids=tokens[ids], pixel_values=images)
        return contrastive_loss(output.logits_per_image, ids)

    fit([clip], loss_of_batch, iterations=iterations, learning_rate=LEARNING_RATE, title="CLIP")
    tokenizer.save_pretrained(out)
    clip.save_pretrained(out)
    owner = dict(zip(train.captions, train.labels))
    accuracy = nearest_caption_accuracy(clip, tokens, [owner[caption] for caption in captions], test)
    return {"tokens": len(tokenizer), "nearest_caption_accuracy": accuracy}
