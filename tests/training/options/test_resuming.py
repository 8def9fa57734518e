"""What may change when a run is resumed, and what is refused."""

import dataclasses

import pytest

from training.errors import OptionError
from training.options import Options, make_parser
from training.options.declaration import Resume
from training.options.options import all_flags
from training.options.resuming import FACTS, check_resumed, fixed_names

FACT_VALUES = {"data": "d1", "teacher": "t1", "student": "s1", "effective_batch_size": 8, "processes": 1}


def options(*argv):
    return Options.of(make_parser("test").parse_args(["--pretrained_teacher_model", "t", "--dataset_name", "d",
                                                      *map(str, argv)]))  # fmt: skip


def compare(saved, current, now=()):
    then = options().recorded() | FACT_VALUES | saved
    return check_resumed("checkpoint-2", then, options(*now).recorded() | FACT_VALUES | current, options(*now))


def other(value):
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 7] if isinstance(value, list | tuple) else f"{value}x"


FIXED = [flag.name for flag in all_flags() if flag.resume is Resume.FIXED]


# Each of these decides what is trained. The test below would not miss one that is declared free to change.
DECISIVE = """
dataset_name dataset_config_name dataset_revision dataset_split train_data_dir image_column caption_column
max_train_samples streaming resolution center_crop random_flip
pretrained_teacher_model revision variant pretrained_student_model student_revision student_variant student_init
use_lora lora_rank lora_alpha lora_dropout lora_target_modules
student_timesteps student_timestep_probabilities zero_terminal_snr adversarial_weight distillation_weight
distillation_weighting distillation_space teacher_guidance_scale teacher_steps teacher_timestep_range negative_prompt
discriminator_feature_model discriminator_text_model discriminator_image_model discriminator_input_size
discriminator_learning_rate discriminator_adam_beta1 discriminator_adam_beta2 r1_gamma discriminator_norm
reconstruct_real no_diffaugment condition_image_at_last_timestep
learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles lr_power use_8bit_adam adam_beta1 adam_beta2
adam_weight_decay adam_epsilon max_grad_norm use_ema ema_decay seed
mixed_precision allow_tf32 teacher_precision decode_crop_size decode_crop_halo pretrained_tiny_vae_model
"""


def test_what_decides_on_the_training_is_fixed():
    assert set(DECISIVE.split()) <= set(FIXED)


@pytest.mark.parametrize("name", FIXED)
def test_every_fixed_flag_is_refused_when_it_changes(name):
    saved = options().recorded()[name]
    with pytest.raises(OptionError, match=f"--{name}: "):
        compare({}, {name: other(saved)})


@pytest.mark.parametrize("name", [name for name in FACTS if name != "processes"])
def test_another_data_set_model_or_batch_size_is_refused(name):
    with pytest.raises(OptionError, match=name):
        compare({}, {name: other(FACT_VALUES[name])})


def test_all_differences_are_in_one_message():
    with pytest.raises(OptionError) as refused:
        compare({"center_crop": True, "seed": 3}, {"seed": 4, "data": "d2"})
    message = str(refused.value)
    assert all(text in message for text in ("--center_crop: True -> False", "--seed: 3 -> 4", "data (the data set's"))
    assert "--allow_changed center_crop data seed" in message


def test_free_flags_change_without_a_word():
    assert compare({"checkpointing_steps": 1, "max_train_steps": 5}, {"max_train_steps": 10, "processes": 2}) == []


def test_the_length_is_fixed_where_the_schedule_depends_on_it():
    assert "max_train_steps" not in set(fixed_names(options()))
    with pytest.raises(OptionError, match="--max_train_steps: 5 -> 10"):
        compare({"lr_scheduler": "cosine", "max_train_steps": 5}, {"max_train_steps": 10}, ("--lr_scheduler", "cosine"))


def test_a_stream_also_fixes_how_it_is_read():
    names = set(fixed_names(options("--streaming", "--max_train_steps", 1)))
    assert {"train_batch_size", "dataloader_num_workers", "gradient_accumulation_steps", "processes"} <= names
    assert not {"train_batch_size", "processes"} & set(fixed_names(options()))


def test_an_allowed_change_is_reported():
    assert compare({"r1_gamma": 0.1}, {}, ("--allow_changed", "r1_gamma")) == ["--r1_gamma: 0.1 -> 1e-05"]


def test_an_unknown_name_in_allow_changed_is_refused():
    with pytest.raises(OptionError, match="--allow_changed got 'r2_gamma': there is no such flag"):
        compare({}, {}, ("--allow_changed", "r2_gamma"))


def test_checkpoints_of_earlier_versions_lack_new_flags():
    then = {name: value for name, value in options().recorded().items() if name != "seed"}
    assert check_resumed("checkpoint-2", then, options().recorded() | FACT_VALUES, options()) == []


def test_none_of_a_facts_values_is_compared_where_it_was_not_known():
    assert compare({"data": None}, {}) == []


def test_lists_of_json_equal_tuples():
    then = dataclasses.asdict(options().method)["student_timesteps"]
    assert compare({"student_timesteps": list(then)}, {}) == []
