"""Measurement of a run: each encoder encodes all images once, and the metrics are computed from the features."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evaluation.errors import EvaluationError, require_packages
from evaluation.metrics.encoders import ClipEncoder, Dinov2Encoder, Encoder, EvaluatorEncoder, InceptionEncoder
from evaluation.metrics.figures import alignment, clip_score, diversity, frechet_distance, precision_recall_coverage
from evaluation.metrics.references import read_images
from evaluation.runs.run import Run

METRICS = ("fid", "fd_dinov2", "clip_score", "prdc", "diversity")
Figures = dict[str, dict[str, Any]]


@dataclass
class Observers:
    """The encoders for the requested metrics.

    Attributes:
        metrics: requested metrics, from `METRICS`.
        encoders: encoders by name: `inception`, `dinov2` and `clip`, or only `evaluator`.
        names: descriptions of the encoders for the definitions of the metrics.
    """

    metrics: tuple[str, ...]
    encoders: dict[str, Encoder] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, encoder: Encoder, description: str) -> None:
        """Add an encoder."""
        self.encoders[name], self.names[name] = encoder, description


def load_observers(
    metrics: Iterable[str],
    device: str,
    dino_model: str,
    clip_model: str,
    inception_weights: Path | None = None,
    evaluator: str | None = None,
) -> Observers:
    """Load the encoders for `metrics`, or only the evaluator if its path is given.

    Raises:
        EvaluationError: a network cannot be loaded.
    """
    observers = Observers(tuple(metrics))
    if evaluator:
        observers.add("evaluator", EvaluatorEncoder(evaluator, device), f"stand-in evaluator {evaluator}")
        return observers
    if "fid" in observers.metrics:
        observers.add("inception", InceptionEncoder(inception_weights, device), "Inception-v3 (torch-fidelity)")
    if {"fd_dinov2", "prdc", "diversity"} & set(observers.metrics):
        observers.add("dinov2", Dinov2Encoder(dino_model, device), f"class token of {dino_model}")
    if "clip_score" in observers.metrics:
        observers.add("clip", ClipEncoder(clip_model, device), clip_model)
    return observers


def extract_features(
    encoders: Mapping[str, Encoder], images: Iterable[Image.Image], total: int, batch_size: int
) -> dict[str, Tensor]:
    """Encode all images with all encoders. Returns features `(N, D)` by the names of the encoders."""
    seen: dict[str, list[Tensor]] = {name: [] for name in encoders}
    rest = iter(images)
    with tqdm(total=total, unit="image", desc="features", leave=False) as progress:
        while batch := list(islice(rest, batch_size)):
            for name, encoder in encoders.items():
                seen[name].append(encoder(batch))
            progress.update(len(batch))
    return {name: torch.cat(parts) for name, parts in seen.items()}


class References:
    """Features of the real images, computed once for each image size of the runs."""

    def __init__(self, files: list[Path], observers: Observers, batch_size: int):
        self.files = files
        self.encoders = {name: encoder for name, encoder in observers.encoders.items() if name != "clip"}
        self.batch_size = batch_size
        self.seen: dict[tuple[int, int], dict[str, Tensor]] = {}

    def __call__(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Features by encoder, of images that are cropped and resized to `size`."""
        if size not in self.seen:
            self.seen[size] = extract_features(
                self.encoders, read_images(self.files, size), len(self.files), self.batch_size
            )
        return self.seen[size]


def measure_run(run: Run, observers: Observers, references: References, batch_size: int) -> Figures:
    """Compute all metrics of a run.

    Distances and scores use the first image of each prompt, and diversity uses all images. Diversity is omitted if
    there is only one image per prompt.
    """
    size = run.load(run.shots[0]).size
    seen = extract_features(observers.encoders, (run.load(shot) for shot in run.shots), len(run.shots), batch_size)
    real = references(size) if references.encoders else {}
    if "evaluator" in seen:
        return _stand_in_figures(run, observers, real["evaluator"], seen["evaluator"])
    first = len(run.prompts)
    figures: Figures = {}
    if "fid" in observers.metrics:
        figures["fid"] = _distance(real["inception"], seen["inception"][:first], observers.names["inception"])
    if "fd_dinov2" in observers.metrics:
        figures["fd_dinov2"] = _distance(real["dinov2"], seen["dinov2"][:first], observers.names["dinov2"])
    if "clip_score" in observers.metrics:
        figures["clip_score"] = {
            "value": clip_score(seen["clip"][:first], observers.encoders["clip"].texts(run.prompts)),
            "definition": f"mean cosine of image and prompt in {observers.names['clip']}",
            "n": first,
        }
    if "dinov2" in seen:
        figures |= _manifold_figures(run, observers, real["dinov2"], seen["dinov2"], observers.names["dinov2"])
    return figures


def _stand_in_figures(run: Run, observers: Observers, real: Tensor, seen: Tensor) -> Figures:
    stand_in, name, first = observers.encoders["evaluator"], observers.names["evaluator"], len(run.prompts)
    real_features, (features, logits) = stand_in.split(real)[0], stand_in.split(seen)
    figures = {"fd_evaluator": _distance(real_features, features[:first], name)}
    named = named_labels(run.prompts, stand_in.labels)
    if named:
        indices = torch.tensor(list(named))
        figures["alignment"] = {
            "value": alignment(logits[indices], torch.tensor(list(named.values()))),
            "definition": f"share of images whose class, by the {name}, is the one that the prompt names",
            "n": len(named),
        }
    return figures | _manifold_figures(run, observers, real_features, features, name)


def _distance(real: Tensor, fake: Tensor, name: str) -> dict[str, Any]:
    return {
        "value": frechet_distance(real, fake),
        "definition": f"Frechet distance of features of {name}; lower is better, biased upwards for small n",
        "n": len(fake),
        "n_reference": len(real),
    }


def _manifold_figures(run: Run, observers: Observers, real: Tensor, features: Tensor, name: str) -> Figures:
    """Precision, recall, density and coverage of the first images, and diversity of all images."""
    figures: Figures = {}
    first = features[: len(run.prompts)]
    if "prdc" in observers.metrics:
        for key, value in precision_recall_coverage(real, first).items():
            definition = f"{key} at k = 5 in features of {name}"
            figures[key] = {"value": value, "definition": definition, "n": len(first), "n_reference": len(real)}
    if "diversity" in observers.metrics and run.manifest["images_per_prompt"] > 1:
        figures["diversity"] = {
            "value": diversity(features, torch.tensor([shot.prompt_index for shot in run.shots])),
            "definition": f"mean Euclidean distance of two images of one prompt (Fig. 8) in features of {name}",
            "n": len(features),
        }
    return figures


def named_labels(prompts: list[str], label2id: Mapping[str, int]) -> dict[int, int]:
    """Map the indices of prompts that contain exactly one class name as a word to the index of this class."""
    named = {}
    for index, prompt in enumerate(prompts):
        labels = set(re.findall(r"\w+", prompt.lower())) & label2id.keys()
        if len(labels) == 1:
            named[index] = label2id[labels.pop()]
    return named


def check_metrics(metrics: Iterable[str], num_prompts: int, num_references: int) -> None:
    """Raise an EvaluationError if there are too few images for the metrics, or a package is not installed."""
    require_packages("torchmetrics")
    if "prdc" in metrics:
        require_packages("prdc", "sklearn", "scipy")
    few = min(num_prompts, num_references)
    if "prdc" in metrics and few < 7:
        raise EvaluationError(
            f"--metrics prdc: it needs 7 generated and 7 real images, but there are {num_prompts} and {num_references}."
        )
    if few < 2:
        raise EvaluationError(
            f"a Frechet distance needs 2 generated and 2 real images, but there are {num_prompts} and {num_references}."
        )
