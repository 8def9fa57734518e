"""The common prompts and seeds for systems on the tiny world, and the measurement of their images."""

from collections import Counter
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from evaluation.generation.sampling import sample, seconds_per_image
from evaluation.metrics.figures import Evaluator, alignment, diversity, frechet_distance
from evaluation.tiny.split import Split
from evaluation.tiny.systems import System, SystemFigures

BATCH_SIZE = 64
CAPTIONS, NOISES = 12, 12  # number of captions for diversity, and of noises for each of them
REAL = System("real", steps=None, guidance=None)


@dataclass(frozen=True)
class Task:
    """The prompts and seeds for all systems.

    Attributes:
        prompts: `num_samples` prompts for Frechet distance and alignment, then each of `captions` `NOISES` times.
        seeds: one seed per prompt.
        labels: `(num_samples,)` class index of each of the first prompts.
        captions: captions for diversity.
    """

    prompts: list[str]
    seeds: list[int]
    labels: Tensor
    captions: list[str]


def choose_captions(captions: list[str], labels: list[str], count: int) -> list[str]:
    """Choose at most `count` captions, alternating between the labels and starting with the most frequent captions."""
    frequency, label_of = Counter(captions), dict(zip(captions, labels))
    by_label: dict[str, list[str]] = {}
    for caption in sorted(frequency, key=lambda caption: (-frequency[caption], caption)):
        by_label.setdefault(label_of[caption], []).append(caption)
    in_turn = chain.from_iterable(zip_longest(*(by_label[label] for label in sorted(by_label))))
    return [caption for caption in in_turn if caption is not None][:count]


def make_task(test: Split, captions: list[str], label2id: dict[str, int], num_samples: int, seed: int) -> Task:
    """Make a task from held-out captions in random order, repeated if there are fewer than `num_samples`."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test.captions), generator=generator).repeat(-(-num_samples // len(test.captions)))
    order = order[:num_samples].tolist()
    prompts = [test.captions[i] for i in order] + [caption for caption in captions for _ in range(NOISES)]
    seeds = torch.randint(2**32, (len(prompts),), generator=generator).tolist()
    return Task(prompts, seeds, torch.tensor([label2id[test.labels[i]] for i in order]), captions)


def to_unit(pixels: Tensor) -> Tensor:
    """Convert pixels from [-1, 1] to [0, 1]."""
    return pixels / 2 + 0.5


def extract_features(evaluator: Evaluator, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(N, D)` and logits `(N, K)` of images `(N, 3, H, W)` in [0, 1], on the CPU."""
    device = evaluator.image_mean.device
    features, logits = zip(*(evaluator(batch.to(device)) for batch in images.split(BATCH_SIZE)))
    return torch.cat(features).cpu(), torch.cat(logits).cpu()


def measure_real(
    evaluator: Evaluator, train: Split, test: Split, task: Task, seed: int
) -> tuple[SystemFigures, Tensor]:
    """Measure as many training images as samples against the held-out images, as a lower bound of the distance.

    Alignment is the evaluator's accuracy on held-out images. Diversity is that of all images with one of
    `task.captions`, and None if each of these captions belongs to one image.

    Returns:
        The figures, and the features of the held-out images.
    """
    (train_features, _), (test_features, logits) = (
        extract_features(evaluator, to_unit(split.pixels)) for split in (train, test)
    )
    drawn = torch.randperm(len(train_features), generator=torch.Generator().manual_seed(seed))[: len(task.labels)]
    index = {caption: i for i, caption in enumerate(task.captions)}
    groups = torch.tensor([index.get(caption, -1) for caption in train.captions + test.captions])
    shown, groups = torch.cat([train_features, test_features])[groups >= 0], groups[groups >= 0]
    ids = evaluator.label_ids
    labels = torch.tensor([ids[label] for label in test.labels])
    row = SystemFigures(
        **vars(REAL),
        fd=frechet_distance(test_features, train_features[drawn]),
        alignment=alignment(logits, labels),
        diversity=diversity(shown, groups) if len(groups) > len(index) else None,
        seconds_per_image=None,
    )
    return row, test_features


def measure_system(
    pipeline: DiffusionPipeline, system: System, task: Task, evaluator: Evaluator, real: Tensor, progress: tqdm
) -> tuple[SystemFigures, Tensor]:
    """Measure one system against held-out features `real`.

    Returns:
        The figures, and the images for diversity `(captions, NOISES, 3, H, W)`.
    """
    settings = {"num_inference_steps": system.steps, "guidance_scale": system.guidance}
    progress.set_description(str(system))
    batches = []
    for batch in sample(pipeline, task.prompts, task.seeds, BATCH_SIZE, **settings):
        batches.append(batch)
        progress.update(len(batch) * system.network_calls)
    images = torch.cat(batches)
    features, logits = extract_features(evaluator, images)
    count = len(task.labels)
    row = SystemFigures(
        **vars(system),
        fd=frechet_distance(real, features[:count]),
        alignment=alignment(logits[:count], task.labels),
        diversity=diversity(features[count:], torch.arange(len(task.captions)).repeat_interleave(NOISES)),
        seconds_per_image=seconds_per_image(pipeline, task.captions[0], **settings),
    )
    return row, images[count:].unflatten(0, (-1, NOISES))
