"""The batch of an iteration: which captions are encoded, and how often."""

import torch

from tests.support.runs import make_batches, prepare_run
from training.models.families import StableDiffusion, StableDiffusionXL


def count_encoded(monkeypatch, family):
    """The texts of each call of `family.embed` from now on."""
    encoded, embed = [], family.embed

    def counting(self, captions):
        encoded.append(list(captions))
        return embed(self, captions)

    monkeypatch.setattr(family, "embed", counting)
    return encoded


def test_captions_of_one_repo_are_encoded_once_and_guiding_prompts_once_a_run(world, tmp_path, monkeypatch):
    prepared = prepare_run(world, tmp_path / "out", "--distillation_weighting", "nfsd", "--negative_prompt", "bad")
    encoded = count_encoded(monkeypatch, StableDiffusion)
    first, second = make_batches(prepared, batch_size=4, count=2)
    captions = [texts for texts in encoded if texts not in ([""], ["bad"])]
    assert len(captions) == 2
    assert all(len(set(texts)) == len(texts) <= 4 for texts in captions)
    assert [texts for texts in encoded if texts not in captions] == [[""], ["bad"]]
    assert first.teacher_conditions.caption is first.condition
    assert first.condition["encoder_hidden_states"].shape[0] == 4
    stock = prepared.family.embed([""])["encoder_hidden_states"]
    for batch in (first, second):
        unconditional = batch.teacher_conditions.unconditional["encoder_hidden_states"]
        assert torch.equal(unconditional, stock.expand(4, -1, -1))
        assert not torch.equal(unconditional, batch.teacher_conditions.negative["encoder_hidden_states"])


def test_teacher_of_another_repo_encodes_the_captions_itself(world, sdxl_world, tmp_path, monkeypatch):
    flags = ("--pretrained_student_model", world / "teacher", "--pretrained_teacher_model", sdxl_world / "teacher",
             "--teacher_guidance_scale", 2)  # fmt: skip
    prepared = prepare_run(world, tmp_path / "out", *flags)
    by_student, by_teacher = (count_encoded(monkeypatch, kind) for kind in (StableDiffusion, StableDiffusionXL))
    make_batches(prepared, batch_size=4, count=2)
    assert len(by_student) == 2
    assert by_teacher == [by_student[0], [""], by_student[1]]
