"""What an evaluator reads in an image, and what a caption asks for: attributes, each with a few possible values."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evaluation.tiny.split import Split
from examples.tiny.data import MAX_LABELS

LABEL = "label"  # the one attribute of a folder without attribute columns
RARE, COMMON = 0.004, 0.95  # a word in a smaller or larger share of the captions tells nothing
MAX_WORDS = 300


def split_words(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    return re.findall(r"[^\W_]+", caption.lower())


def informative_words(captions: Sequence[str]) -> list[str]:
    """The words that some but not all captions have, at most `MAX_WORDS`, the most frequent ones first."""
    counts = Counter(word for caption in captions for word in set(split_words(caption)))
    low, high = max(2, RARE * len(captions)), COMMON * len(captions)
    words = [word for word, count in counts.items() if low <= count <= high]
    return sorted(words, key=lambda word: (-counts[word], word))[:MAX_WORDS]


def mark_words(captions: Sequence[str], words: Sequence[str]) -> torch.Tensor:
    """`(N, V)`, 1 where caption n has word v, else 0."""
    index = {word: v for v, word in enumerate(words)}
    marks = torch.zeros(len(captions), len(words))
    for n, caption in enumerate(captions):
        marks[n, [index[word] for word in split_words(caption) if word in index]] = 1
    return marks


@dataclass(frozen=True)
class Attributes:
    """The attributes of a data set: for each name its possible values, in the order of the evaluator's logits."""

    values: dict[str, tuple[str, ...]]

    @property
    def sizes(self) -> list[int]:
        """How many values each attribute has."""
        return [len(values) for values in self.values.values()]

    @property
    def logit_names(self) -> list[str]:
        """A name for each logit: the value, and in front of it the attribute where there are several."""
        if len(self.values) == 1:
            return list(*self.values.values())
        return [f"{name}: {value}" for name, values in self.values.items() for value in values]

    def targets(self, split: Split) -> torch.Tensor:
        """`(N, A)`, the index of each image's value for each attribute."""
        columns = [columns_of(split, list(self.values))[name] for name in self.values]
        return torch.tensor(
            [[self.values[name].index(v) for name, v in zip(self.values, row)] for row in zip(*columns)]
        )

    def read(self, logits: torch.Tensor) -> torch.Tensor:
        """`(N, A)`, the most likely value of each attribute by `logits (N, K)`."""
        return torch.stack([part.argmax(dim=1) for part in logits.split(self.sizes, dim=1)], dim=1)

    def agreement(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Share of images that are read as `targets (N, A)` asks, for each attribute, and in all of them at once.

        Returns `agreement` (all at once) and, where there are several, `agreement_NAME` for each.
        """
        right = self.read(logits) == targets
        figures = {"agreement": right.all(dim=1).double().mean().item()}
        if len(self.values) > 1:
            figures |= {f"agreement_{n}": r.double().mean().item() for n, r in zip(self.values, right.T)}
        return figures


def columns_of(split: Split, names: Sequence[str]) -> dict[str, list[str]]:
    """The values of the attributes `names` for each image of `split`."""
    columns = {LABEL: split.labels, **split.attributes}
    words = [name for name in names if name not in columns]
    if words:
        marks = mark_words(split.captions, words)
        columns |= {word: ["yes" if mark else "no" for mark in marks[:, v]] for v, word in enumerate(words)}
    return columns


def find_attributes(train: Split, test: Split) -> Attributes:
    """The attribute columns if there are any; else the label, which is the caption where there is no label column; and
    if that has more than `MAX_LABELS` values, whether each informative word is in the caption."""
    names = list(train.attributes)
    if not names:
        few = len(set(train.labels) | set(test.labels)) <= MAX_LABELS
        names = [LABEL] if few else informative_words(train.captions)
    parts = [columns_of(split, names) for split in (train, test)]
    return Attributes({name: tuple(sorted(set(parts[0][name]) | set(parts[1][name]))) for name in names})
