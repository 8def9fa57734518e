"""Votes of a reward model with the layout of CLIP, such as PickScore."""

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from evaluation.generation.generate_run import split_batches
from evaluation.metrics.encoders import ClipEncoder
from evaluation.preference.store import Store
from evaluation.runs.run import Run


def score_images(model: ClipEncoder, run: Run, num_prompts: int, batch_size: int) -> Tensor:
    """Reward of each prompt's first image `(num_prompts,)`: cosine with the prompt.

    PickScore is this times a constant, which does not change who wins.
    """
    scores = []
    for batch in tqdm(list(split_batches(run.shots[:num_prompts], batch_size)), desc=run.name):
        images = model([run.load(shot) for shot in batch])
        scores.append(F.cosine_similarity(images, model.texts([shot.prompt for shot in batch])))
    return torch.cat(scores)


def vote_by_reward(store: Store, voter: str, scores: dict[str, Tensor]) -> tuple[int, int]:
    """Vote on all tasks that `voter` has not voted on yet, for the image with the larger reward.

    Equal rewards give no vote. A model has one reward, so its votes are the same for all questions.

    Args:
        store: the study.
        voter: name of the judge.
        scores: reward of every prompt's image `(num_prompts,)`, by run.

    Returns:
        Numbers of votes and of ties.
    """
    votes, ties = [], 0
    for task, prompt, first, second, _ in store.unvoted_tasks(voter):
        difference = (scores[first][prompt] - scores[second][prompt]).item()
        if difference == 0:
            ties += 1
        else:
            votes.append((task, "left" if difference > 0 else "right"))
    store.add_judge_votes(voter, votes)
    return len(votes), ties
