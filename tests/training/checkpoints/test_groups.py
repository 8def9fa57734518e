"""Groups of a checkpoint are made one at a time, and by every process in the same order."""

import torch

from training.checkpoints.groups import Groups
from training.checkpoints.store import load_checkpoint, save_checkpoint


def make_groups(made):
    def maker(name):
        def make():
            made.append(name)
            return {"weight": torch.full((2,), float(len(made)))}

        return make

    return Groups({name: maker(name) for name in ("student", "student_optimizer", "student_ema")})


def test_each_group_is_made_once_and_written(tmp_path):
    groups = make_groups(made := [])
    path = save_checkpoint(tmp_path, 1, groups, {})
    assert made == list(groups)
    groups.make_rest()
    assert made == list(groups)
    assert load_checkpoint(path).tensors["student_ema"]["weight"].tolist() == [3, 3]


def test_the_rest_is_made_where_writing_has_failed():
    """Otherwise the other processes, which make all groups, would wait for this one."""
    groups = make_groups(made := [])
    next(iter(groups.values()))
    groups.make_rest()
    assert made == ["student", "student_optimizer", "student_ema"]
