"""The command line: --config FILE, and errors of one line."""

import pytest

from training.options import Options, make_parser

REQUIRED = ("--pretrained_teacher_model", "t", "--dataset_name", "d")


def parse(*argv):
    return Options.of(make_parser("test").parse_args([*map(str, argv)]))


def config(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_config_gives_flags_and_the_command_line_wins(tmp_path):
    file = config(
        tmp_path,
        """
pretrained_teacher_model: teacher
dataset_name: set
resolution: 256
use_lora: true
random_flip: false
student_timesteps: [499, 999]
mixed_precision: no
learning_rate: 1e-4
validation_prompts: ["a cat, asleep", a dog]
""",
    )
    options = parse("--config", file, "--resolution", 64)
    assert options.models.pretrained_teacher_model == "teacher"
    assert options.data.resolution == 64
    assert options.lora.use_lora
    assert not options.data.random_flip
    assert options.method.student_timesteps == (499, 999)
    assert options.hardware.mixed_precision == "no"
    assert options.optimization.learning_rate == 1e-4
    assert options.validation.validation_prompts == ("a cat, asleep", "a dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resolutoin: 64", "there is no flag 'resolutoin'; did you mean resolution?"),
        ("use_lora: yes please", "use_lora must be true or false, not 'yes please'"),
        ("- a\n- b", "the file must contain `name: value` lines"),
        ("a: [", "--config got"),
        ("config: other.yaml", "there is no flag 'config'"),
    ],
)
def test_a_bad_config_is_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as ended:
        parse(*REQUIRED, "--config", config(tmp_path, text))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_config_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(*REQUIRED, "--config", tmp_path / "nothing.yaml")
    error = capsys.readouterr().err
    assert "nothing.yaml" in error
    assert error.count("\n") == 1


def test_a_typo_is_one_line_with_the_flag_that_was_meant(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*REQUIRED, "--use_lroa")
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "unrecognized arguments: --use_lroa; did you mean --use_lora?" in error
    assert error.count("\n") == 1


def test_help_begins_with_one_line_of_usage(capsys):
    with pytest.raises(SystemExit):
        make_parser("Distil a model.").parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage:")
    assert "Distil a model." in lines[:4]
