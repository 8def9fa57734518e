"""From votes to figures: who counts, how the questions join, and the judge's choices."""

import pytest
import torch

from evaluation.errors import EvaluationError
from evaluation.preference.reward_model import score_images, vote_by_reward
from evaluation.preference.store import Store
from evaluation.preference.summary import (
    count_checks,
    counted_votes,
    describe_voters,
    preference_markdown,
    summarize,
)
from evaluation.preference.votes import read_votes
from tests.evaluation.run_folders import PROMPTS, make_run


def vote(winner, loser, question="quality", voter="ann", judge=False, tie=False):
    return {"voter": voter, "judge": judge, "question": question, "prompt": 0, "is_check": False, "passed": None,
            "participant": None, "tie": tie, "winner": winner, "loser": loser}  # fmt: skip


def check(passed, voter="ann"):
    return vote("a", "b", voter=voter) | {"is_check": True, "passed": passed}


def test_only_the_attentive_count():
    """Four checks in five are enough at 0.8, three are not; who met no check is trusted; checks are no games."""
    votes = [vote("a", "b"), *[check(True)] * 4, check(False)]
    votes += [vote("b", "a", voter="bob"), *[check(True, "bob")] * 3, *[check(False, "bob")] * 2]
    votes += [vote("a", "b", voter="cid")]
    assert count_checks(votes) == {"ann": (4, 5), "bob": (3, 5), "cid": (0, 0)}
    assert [v["voter"] for v in counted_votes(votes, "people", 0.8)] == ["ann", "cid"]
    assert [v["voter"] for v in counted_votes(votes, "people", 0.6)] == ["ann", "bob", "cid"]


def test_people_and_judges_are_counted_apart():
    votes = [vote("a", "b"), vote("b", "a", voter="judge:x", judge=True)]
    assert counted_votes(votes, "people", 0.8) == votes[:1]
    assert counted_votes(votes, "judges", 0.8) == votes[1:]
    with pytest.raises(EvaluationError, match="none of 1 votes"):
        counted_votes(votes[:1], "judges", 0.8)


def test_elo_is_the_mean_of_both_questions():
    """One game on quality: 1000.5 to 999.5. On adherence the other wins: the means are equal (section 4.2)."""
    summary = summarize([vote("a", "b"), vote("b", "a", "adherence")], ["a", "b"], rounds=3, seed=0)
    assert summary["questions"]["quality"]["elo"] == {"a": 1000.5, "b": 999.5}
    assert summary["questions"]["adherence"]["elo"] == {"a": 999.5, "b": 1000.5}
    assert summary["elo"] == {"a": {"mean": 1000.0}, "b": {"mean": 1000.0}}


def test_tables_rank_and_give_shares():
    votes = [vote("b", "a")] * 3 + [vote("a", "b")] + [vote("c", "a")]
    text = preference_markdown(summarize(votes, ["a", "b", "c"], rounds=5, seed=0))
    ranks = [line.split("|")[1].strip() for line in text.splitlines()[2:5]]
    assert ranks == ["b", "c", "a"]
    assert "| quality | a | b | 25.0% | 4.6% to 69.9% | 0 | 4 |" in text
    assert "| quality | b | c |" not in text  # they never met


def test_ties_leave_the_win_rate_to_the_decided_votes():
    """Of three votes on a pair one is a tie; a pair with ties only has no win rate; ELO counts half a game."""
    votes = [vote("b", "a"), vote("b", "a"), vote("a", "b", tie=True), vote("a", "c", tie=True)]
    summary = summarize(votes, ["a", "b", "c"], rounds=5, seed=0)
    text = preference_markdown(summary)
    assert "| quality | a | b | 0.0% | 0.0% to 65.8% | 1 | 3 |" in text
    assert "| quality | a | c | - | - | 1 | 1 |" in text
    assert summary["elo"]["b"]["mean"] > summary["elo"]["c"]["mean"] > summary["elo"]["a"]["mean"]


def test_names_are_plain_text_in_the_tables():
    text = preference_markdown(summarize([vote("<img src=x>", "a|b")], ["<img src=x>", "a|b"], rounds=2, seed=0))
    assert "<img" not in text
    assert "a\\|b" in text


def test_inattentive_voters_are_named_as_the_platform_knows_them():
    votes = [vote("a", "b", voter="1f"), vote("a", "b", voter="2e") | {"participant": "bob"}]
    assert describe_voters(votes, ["2e", "1f"]) == ["1f", "2e (bob)"]


def test_the_judge_prefers_the_larger_reward_and_leaves_ties(tmp_path):
    """Per prompt: b, a, and one tie; both questions alike; a second time adds nothing."""
    path = tmp_path / "s.sqlite"
    store = Store(path, {"runs": ["a", "b"], "prompts_sha256": "0"}, num_prompts=3)
    scores = {"a": torch.tensor([0.1, 0.3, 0.2]), "b": torch.tensor([0.2, 0.1, 0.2])}
    assert vote_by_reward(store, "judge:m", scores) == (4, 2)
    assert vote_by_reward(store, "judge:m", scores) == (0, 2)
    winners = {(v["question"], v["prompt"]): v["winner"] for v in read_votes(path)}
    assert winners == {(question, p): "ba"[p] for question in ("quality", "adherence") for p in (0, 1)}
    assert store.assign("ann", 1, 0.0) is not None  # a judge's vote does not stand for a person's


def test_rewards_are_of_the_right_image_and_prompt(tmp_path):
    """A reward model that knows brightness and the length of a text."""

    class Stub:
        def __call__(self, images):
            return torch.tensor([[float(image.resize((1, 1)).getpixel((0, 0))[0]), 255.0] for image in images])

        def texts(self, texts):
            return torch.tensor([[float(len(text)), 0.0] for text in texts])

    dark, bright = (make_run(tmp_path / str(value), value, images_per_prompt=2) for value in (50, 200))
    low, high = (score_images(Stub(), run, 5, batch_size=2) for run in (dark, bright))
    assert low.shape == high.shape == (5,)
    assert (low < high).all()
    assert len(PROMPTS) > 5
