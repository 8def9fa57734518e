"""The labelled sample grids."""

from types import SimpleNamespace

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from tests.support.runs import options_of, prepare_run
from training.monitoring.validation import CELL, VALIDATION_STEPS, Validator, make_grid

RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")


def test_small_images_are_enlarged_with_gaps_and_labels():
    grid = make_grid({"1 step": [RED, BLUE], "2 steps": [BLUE, RED]}, ["a red square", "a blue square"])
    colors = grid.getcolors(grid.width * grid.height)
    counts = {color: count for count, color in colors}
    assert counts[255, 0, 0] == counts[0, 0, 255] == 2 * CELL * CELL
    assert grid.width > 2 * CELL
    assert grid.height > 2 * CELL
    assert any(max(color) < 128 for color in counts)  # the labels' letters


def test_large_images_keep_their_size():
    grid = make_grid({"1 step": [Image.new("RGB", (300, 200), "red")]}, ["a long prompt " * 10])
    assert {color: n for n, color in grid.getcolors(grid.width * grid.height)}[255, 0, 0] == 300 * 200


def test_rows_of_a_run(world, tmp_path):
    """The teacher's row is drawn once; prompt i starts from the same noise in every grid."""
    prepared = prepare_run(world, tmp_path / "out", "--validation_prompts", "one", "two")
    validator = Validator(prepared)
    validator.validate()
    first = (tmp_path / "out/validation/step-0.png").read_bytes()
    assert list(validator.teacher_rows) == ["teacher, 25 steps"]
    teacher = validator.teacher_rows["teacher, 25 steps"]
    prepared.state.step = 1
    validator.validate()
    assert validator.teacher_rows["teacher, 25 steps"] is teacher
    assert (tmp_path / "out/validation/step-1.png").read_bytes() == first
    assert len(teacher) == 2
    assert len(VALIDATION_STEPS) == 3


@pytest.mark.parametrize(
    ("prompts", "warns"), [(("a", "thin", "two"), True), (("a thin two", "three"), False), (("two",), False)]
)
def test_a_prompt_without_quotation_marks_is_noticed(caplog, prompts, warns):
    options = options_of("--pretrained_teacher_model", "x", "--validation_prompts", *prompts)
    Validator(SimpleNamespace(options=options))
    assert ("3 prompts of one word each: a, thin, two" in caplog.text) == warns


def test_without_a_teacher_there_is_no_teachers_row(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", "--validation_prompts", "one", "--distillation_weight", 0)
    validator = Validator(prepared)
    validator.validate()
    assert validator.teacher_rows == {}


def test_with_lora_the_teacher_is_the_base(world, tmp_path):
    """The row is drawn with the adapter disabled, and the adapter is enabled afterwards."""
    prepared = prepare_run(world, tmp_path / "out", "--validation_prompts", "one", "--use_lora", "--lora_rank", 4)
    for name, parameter in prepared.players.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_()
    validator, plain = (
        Validator(prepared),
        Validator(prepare_run(world, tmp_path / "plain", "--validation_prompts", "one")),
    )
    validator.validate()
    plain.validate()
    row, expected = (v.teacher_rows["teacher, 25 steps"][0].tobytes() for v in (validator, plain))
    assert row == expected
    layers = [m for m in prepared.players.student.modules() if isinstance(m, BaseTunerLayer)]
    assert layers
    assert not any(layer.disable_adapters for layer in layers)
