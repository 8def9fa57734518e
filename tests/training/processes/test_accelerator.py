"""The accelerator of a run: what it sets for the process."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from tests.support.runs import options_of
from training.errors import OptionError
from training.processes import accelerator
from training.processes.accelerator import make_accelerator


@pytest.fixture(autouse=True)
def _restore_tf32():
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_what_the_flag_says_for_products_and_convolutions(tmp_path, allowed):
    """torch's default allows it in convolutions, of which the float32 heads consist."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not allowed
    flags = ["--pretrained_teacher_model", "x", "--output_dir", str(tmp_path), "--report_to", "none"]
    make_accelerator(options_of(*flags, *["--allow_tf32"] * allowed))
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed
    expected = "tf32" if allowed else ("ieee", "none")
    assert torch.backends.cuda.matmul.fp32_precision in expected
    assert torch.backends.cudnn.conv.fp32_precision in expected


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_training_is_refused(monkeypatch, kind):
    monkeypatch.setattr(accelerator, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind))
    flags = ["--pretrained_teacher_model", "x", "--report_to", "none"]
    with pytest.raises(OptionError, match=f"got distributed_type {kind.value}: two networks"):
        make_accelerator(options_of(*flags))
