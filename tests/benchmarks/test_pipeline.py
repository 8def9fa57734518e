"""The pipelines' benchmark: turns are taken, ratios are of pairs, and it runs as a command on a saved student."""

import json

import pytest
import torch

from benchmarks import pipeline
from examples.tiny.models import make_scheduler
from pipelines import student_scheduler
from tests.pipelines.families import SD


class Fake:
    """Draws gray of `level`; its clock runs `seconds` a call, ten times that in a busy minute."""

    def __init__(self, clock, seconds, level):
        self.clock, self.seconds, self.level, self.calls = clock, seconds, level, 0

    def __call__(self, generator, **_):
        self.calls += 1
        busy = 10 if 4 <= self.calls <= 7 else 1
        self.clock[0] += self.seconds * busy
        return type("Output", (), {"images": torch.full((1, 3, 4, 4), self.level)})


def test_a_busy_machine_slows_both(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: clock[0])
    stock, ours = Fake(clock, 0.3, 0.5), Fake(clock, 0.1, 0.75)
    ours.calls = -1  # its first call is one more
    result = pipeline.compare(stock, ours, pairs=7, warmup=1)
    assert (stock.calls, ours.calls) == (8, 8)
    assert result.ratio == pytest.approx(3)
    assert result.first_call_s == pytest.approx(0.1)
    assert result.stock_ms == pytest.approx(3000)  # four of seven were busy
    assert result.difference == pytest.approx(0.25)


def test_command(tmp_path, capsys):
    """On a real student, without waiting for compilation: the same images, figures and the machine's name."""
    scheduler = student_scheduler(make_scheduler().config, "epsilon")
    SD.ours(**SD.components(), scheduler=scheduler, **SD.options).save_pretrained(tmp_path)
    pipeline.main(["--model", str(tmp_path), "--pairs", "2", "--num_inference_steps", "2", "--no_compile"])
    text, line = capsys.readouterr().out.strip().splitlines()[-2:]
    figures = json.loads(line)
    assert figures["device"] in text
    assert figures["difference"] < 1e-4
    assert figures["ratio"] > 0
    assert figures["stock_ms"] > 0
    with pytest.raises(SystemExit):
        pipeline.main(["--model", str(tmp_path), "--pairs", "0"])
