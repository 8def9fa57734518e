"""Every flag is declared once and completely, and the parser is what the declarations say."""

import dataclasses
import re

import pytest

from training.errors import OptionError
from training.options import Options, make_parser
from training.options.declaration import Resume, flag, flags_of
from training.options.models import SD3Options, SDXLOptions
from training.options.options import GROUPS, all_flags

REQUIRED = ("--pretrained_teacher_model", "t", "--dataset_name", "d")


def parse(*argv):
    return Options.of(make_parser("test", [SDXLOptions, SD3Options]).parse_args([*REQUIRED, *map(str, argv)]))


def test_a_field_without_a_declaration_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Careless:
        rate: float = 1.0

    with pytest.raises(TypeError, match=r"Careless\.rate is not declared"):
        list(flags_of(Careless))


def test_a_flag_that_is_not_classified_for_resume_is_refused():
    with pytest.raises(TypeError, match="resume"):
        flag(1.0, "A rate.")


def test_every_flag_has_one_place_and_a_sentence_of_help():
    flags = list(all_flags())
    names = [flag.name for flag in flags]
    assert len(names) == len(set(names))
    for declared in flags:
        assert isinstance(declared.resume, Resume)
        assert declared.help.endswith("."), declared.name
        assert not re.match("Of |As ", declared.help), declared.name


def test_parser_has_exactly_the_declared_flags():
    options = {o for action in make_parser("test", [SDXLOptions, SD3Options])._actions for o in action.option_strings}
    assert options - {"-h", "--help", "--config"} == {f"--{flag.name}" for flag in all_flags()}


def test_sd_script_does_not_know_the_flags_of_sdxl():
    with pytest.raises(SystemExit):
        make_parser("test").parse_args([*REQUIRED, "--pretrained_vae_model_name_or_path", "x"])
    assert Options.of(make_parser("test").parse_args(REQUIRED)).sdxl.pretrained_vae_model_name_or_path is None


def test_card_shows_the_flags_of_one_familys_script_only_where_they_are_set():
    hidden = {"max_sequence_length", "no_text_encoder_3", "pretrained_vae_model_name_or_path", "vae_revision"}
    assert not hidden & Options.of(make_parser("test").parse_args(REQUIRED)).public().keys()
    words = [*REQUIRED, "--no_text_encoder_3"]
    public = Options.of(make_parser("test", [SD3Options]).parse_args(words)).public()
    assert hidden & public.keys() == {"no_text_encoder_3"}


def test_values_have_the_declared_types():
    options = parse("--student_timesteps", 499, 999, "--lora_rank", 8, "--use_lora", "--learning_rate", "1e-4")
    assert options.method.student_timesteps == (499, 999)
    assert options.lora == dataclasses.replace(parse().lora, use_lora=True, lora_rank=8)
    assert options.optimization.learning_rate == 1e-4


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().data.resolution = 256


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--lr_power", "nan"), "--lr_power got nan: give a finite number"),
        (("--teacher_guidance_scale", "inf"), "--teacher_guidance_scale got inf: give a finite number"),
        (("--learning_rate", "inf"), "--learning_rate got inf: give a finite number"),
        (("--student_timestep_probabilities", "nan", 1), "--student_timestep_probabilities got .* finite"),
        (("--ema_decay", 1), r"--ema_decay got 1.0: give a number in \[0, 1\)"),
        (("--train_batch_size", 0), "--train_batch_size got 0: give 1 or more"),
        (("--adam_epsilon", 0), "--adam_epsilon got 0.0: give a number above 0"),
    ],
)
def test_numbers_outside_of_their_range_are_refused(argv, message):
    with pytest.raises(OptionError, match=message):
        parse(*argv)


def test_secrets_are_not_recorded():
    recorded = parse("--push_to_hub", "--hub_token", "hf_secret").recorded()
    assert "hf_secret" not in str(recorded)
    assert recorded["push_to_hub"] is True


def test_flat_has_every_flag_of_every_group():
    flat = parse("--resolution", 64).flat()
    assert list(flat) == [flag.name for group in GROUPS.values() for flag in flags_of(group)]
    assert flat["resolution"] == 64
