"""The text encoder of a captioned folder: a byte-pair tokenizer and a CLIP."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel

from evaluation.metrics import pooled
from evaluation.tiny.split import Split
from examples.tiny.captioned.gates import Course, Gate
from examples.tiny.captioned.plan import Plan
from examples.tiny.captioned.reading import informative_words, mark_words
from examples.tiny.clip import contrastive_loss, tokenize
from examples.tiny.images import normalize, warp
from examples.tiny.loop import draw, fit
from examples.tiny.models import make_clip, make_tokenizer

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WORD_WEIGHT = 5.0
CANDIDATES = 32  # captions among which an image has to find its own
MEASURED_IMAGES = 1024
LONGEST = 77  # tokens, as CLIP
MARGIN = 4  # tokens by which a prompt may be longer than every caption
GATES = (Gate("retrieval", 0.5, "Write captions that say what is visible, in words that recur, or give more images"),)


def fit_tokenizer(captions: list[str], pad_token: str | None = None):
    """A tokenizer whose length is that of the longest caption, its two special tokens and `MARGIN`, at most `LONGEST`:
    padding costs attention."""
    tokenizer = make_tokenizer(captions, pad_token=pad_token, max_tokens=LONGEST)
    longest = max(len(ids) for ids in tokenizer(captions).input_ids)
    return make_tokenizer(captions, pad_token=pad_token, max_tokens=min(longest + MARGIN, LONGEST))


@torch.no_grad()
def retrieval(images: torch.Tensor, texts: torch.Tensor, caption_ids: torch.Tensor, candidates: int) -> float:
    """Share of images that are nearest to their own caption among `candidates`, all of one group of images.

    Args:
        images: `(N, D)` image embeddings.
        texts: `(N, D)` embeddings of their captions.
        caption_ids: `(N,)`, equal for equal captions; any equal caption is right.
        candidates: images in a group, and with it captions to choose from.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    right = []
    for rows in torch.arange(len(images)).split(candidates):
        nearest = (images[rows] @ texts[rows].T).argmax(dim=1)
        right.append(caption_ids[rows][nearest] == caption_ids[rows])
    return torch.cat(right).double().mean().item()


def measure_clip(clip: CLIPModel, tokens: torch.Tensor, test: Split) -> dict[str, float]:
    """`retrieval` of `CANDIDATES` on at most `MEASURED_IMAGES` held-out images; `tokens (N, L)` of their captions."""
    count = min(MEASURED_IMAGES, len(test.captions))
    known = sorted(set(test.captions))
    ids = torch.tensor([known.index(caption) for caption in test.captions[:count]])
    with torch.no_grad():
        chunks = torch.arange(count).split(128)
        images = torch.cat([pooled(clip.get_image_features(normalize(test.pixels[rows]))) for rows in chunks])
        texts = torch.cat([pooled(clip.get_text_features(tokens[rows])) for rows in chunks])
    return {"retrieval": retrieval(images, texts, ids, CANDIDATES)}


def train_clip(
    out: Path, train: Split, test: Split, plan: Plan, course: Course, width: int | None = None, pad_token=None
) -> dict[str, float]:
    """Train and save tokenizer and `CLIPModel` in `out`. Returns its figures.

    While it is trained, the image embedding also names the words of the caption: words recur, whole captions hardly
    ever do, and with words a few hundred images teach colours and shapes.

    Args:
        out: folder to save in.
        train: images and captions to train on.
        test: held-out images and captions.
        plan: sizes.
        course: rounds.
        width: of both towers; the plan's by default.
        pad_token: of the tokenizer; the end token by default.

    Raises:
        GateMissedError: held-out images do not find their captions.
    """
    captions = sorted(set(train.captions))
    tokenizer = fit_tokenizer(captions, pad_token)
    clip = make_clip(tokenizer, width or plan.text_width, image_size=plan.resolution)
    tokens, test_tokens = tokenize(tokenizer, captions), tokenize(tokenizer, test.captions)
    index = {caption: k for k, caption in enumerate(captions)}
    caption_ids = torch.tensor([index[caption] for caption in train.captions])
    words = informative_words(train.captions)
    marks = mark_words(captions, words)
    to_words = nn.Linear(width or plan.text_width, len(words))

    def loss_of_batch() -> torch.Tensor:
        ids = caption_ids[rows := draw(len(caption_ids), BATCH_SIZE)]
        images = normalize(warp(train.pixels[rows], degrees=5, scale=0.05, shift_px=2))
        output = clip(input_ids=tokens[ids], pixel_values=images)
        loss = contrastive_loss(output.logits_per_image, ids)
        if not words:
            return loss
        vision = output.vision_model_output.pooler_output
        named = F.binary_cross_entropy_with_logits(to_words(clip.visual_projection(vision)), marks[ids])
        return loss + WORD_WEIGHT * named

    def fit_round(part: int, iterations: int) -> None:
        settings = {"learning_rate": LEARNING_RATE, "checkpoint": course.checkpoint, "part": part}
        fit([clip, to_words], loss_of_batch, iterations=iterations, title="CLIP", **settings)

    figures = course.run(fit_round, lambda: measure_clip(clip, test_tokens, test), GATES)
    tokenizer.save_pretrained(out)
    clip.save_pretrained(out)
    return {"tokens": len(tokenizer), **figures}
