"""Small checkpoints whose every value tells their step."""

import torch

from training.checkpoints.store import load_checkpoint, save_checkpoint


def content(step):
    """Tensors and state that differ with `step` in every value, as far as a file has room for it."""
    student = {"weight": torch.full((3, 5), float(step)), "bias": torch.tensor(step)}
    ema = {"weight": torch.full((4,), step, dtype=torch.bfloat16)}
    return {"student": student, "ema": ema}, {"position": 8 * step, "lr": 0.1 / step}


def save(output_dir, step, total_limit=None, of=None):
    return save_checkpoint(output_dir, step, *content(of or step), total_limit=total_limit)


def assert_content(path, step):
    loaded = load_checkpoint(path)
    tensors, state = content(step)
    assert loaded.state == state
    assert loaded.tensors.keys() == tensors.keys()
    for group in tensors:
        assert loaded.tensors[group].keys() == tensors[group].keys()
        for name, tensor in tensors[group].items():
            assert loaded.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[group][name], tensor)


def names(folder):
    return sorted(path.name for path in folder.iterdir())
