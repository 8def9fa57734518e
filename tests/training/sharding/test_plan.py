"""What of accelerate's configuration a run cannot do is refused before accelerate is set up."""

import re

import pytest

from tests.support.runs import options_of
from training.errors import OptionError
from training.processes.accelerator import make_accelerator

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COPIES = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (), "got DeepSpeed: its engine owns one network.*--fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, (), "--fsdp_version got 1: only FSDP2.*use --fsdp_version 2"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, (), "got true: use .* --gradient_checkpointing"),
        (FSDP2, ("--teacher_precision", "4bit"), "--teacher_precision got '4bit': packed weights cannot be sharded"),
        (FSDP2, ("--use_8bit_adam",), "--use_8bit_adam got True: bitsandbytes cannot read sharded weights"),
        (FSDP2, ("--mixed_precision", "fp16"), "--mixed_precision got 'fp16': .*use bf16 or no"),
    ],
)
def test_refused_in_one_line(tmp_path, monkeypatch, environment, flags, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = options_of("--pretrained_teacher_model", "x", "--output_dir", tmp_path, "--report_to", "none", *flags)
    with pytest.raises(OptionError) as error:
        make_accelerator(options)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)
