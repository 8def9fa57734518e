"""Which class takes which family's models, and the ways from stock pipelines and single files to ours and back."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
)
from diffusers.utils import dynamic_modules_utils
from safetensors.torch import save_file

from examples.tiny.models import make_scheduler
from pipelines import ADDPipeline, ADDXLPipeline, student_scheduler
from tests.pipelines.families import SD, SDXL

TURBO = (699, 799, 899, 999)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def index_naming(folder: Path, class_name: str) -> Path:
    """A repository that cannot be loaded any further than its index."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return folder


def build(family):
    scheduler = student_scheduler(make_scheduler().config, "epsilon", TURBO)
    return family.ours(**family.components(), scheduler=scheduler, **family.options)


@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusionImg2ImgPipeline", "ADDPipeline"])
def test_unknown_families_are_refused(family, tmp_path, name):
    """Named with what the class takes and the mend, before any weight is read."""
    with pytest.raises(ValueError, match=rf"contains a {name}, but .* samples a {family.stock_name}\. Load it with"):
        family.ours.from_pretrained(index_naming(tmp_path, name))


def test_sdxl_class_refuses_the_other_family(tmp_path):
    """Only ADDPipeline, the general name, hands over: who asks for the SDXL class expects one."""
    with pytest.raises(ValueError, match="contains a StableDiffusionPipeline, but ADDXLPipeline samples"):
        ADDXLPipeline.from_pretrained(index_naming(tmp_path, "StableDiffusionPipeline"))


def test_a_file_that_runs_alone_knows_its_own_family(tmp_path, monkeypatch):
    """The published ADDPipeline has no SDXL class to hand over to, and says so."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    repo = tmp_path / "sd"
    build(SD).save_pretrained(repo)
    alone = type(DiffusionPipeline.from_pretrained(repo, custom_pipeline=str(repo), trust_remote_code=True))
    assert alone.__name__ == "ADDPipeline"
    assert alone is not ADDPipeline
    with pytest.raises(ValueError, match="contains a StableDiffusionXLPipeline, but ADDPipeline samples"):
        alone.from_pretrained(index_naming(tmp_path, "StableDiffusionXLPipeline"))


@pytest.mark.parametrize(
    ("ours", "theirs", "missing"),
    [(SD, SDXL, ("safety_checker",)), (SDXL, SD, ("text_encoder_2", "tokenizer_2"))],
    ids=["sd", "sdxl"],
)
def test_from_pipe_refuses_the_other_family(ours, theirs, missing):
    """Stock from_pipe would give an SD pipeline with SDXL's UNet, which fails in the middle of a call."""
    other = theirs.stock["text"](**theirs.components(), scheduler=make_scheduler(), **theirs.options)
    none = dict.fromkeys(missing)
    assert ours.stock["text"].from_pipe(other, **none).unet is other.unet
    with pytest.raises(ValueError, match=rf"{ours.ours.__name__} samples .*another family\. Use .*ADDXLPipeline"):
        ours.ours.from_pipe(other, **none)


@pytest.mark.parametrize("kind", ["text", "image", "inpaint"])
def test_from_pipe_both_ways(family, make_pipeline, kind):
    """`from_pipe` between each stock class and ours shares the components and keeps the student's timesteps."""
    stock = make_pipeline(kind, student_timesteps=TURBO)
    ours = family.ours.from_pipe(stock)
    assert ours.student_timesteps == TURBO
    back = family.stock[kind].from_pipe(ours)
    assert type(back) is family.stock[kind]
    for name, component in stock.components.items():
        assert ours.components[name] is component
        assert back.components[name] is component
    assert back.scheduler.config["_student_timesteps"] == list(TURBO)
    ours.set_progress_bar_config(disable=True)
    expected = make_pipeline(student_timesteps=TURBO)("a seven", generator=seeded(), output_type="latent").images
    assert torch.equal(ours("a seven", generator=seeded(), output_type="latent").images, expected)


@pytest.mark.parametrize(
    ("auto", "kind"),
    [
        (AutoPipelineForText2Image, "text"),
        (AutoPipelineForImage2Image, "image"),
        (AutoPipelineForInpainting, "inpaint"),
    ],
)
def test_auto_pipelines_from_pipe(family, make_pipeline, auto, kind):
    """`from_pipe` gives our class with the same components, and draws the same image; stock pipelines are as before."""
    pipe = make_pipeline(student_timesteps=TURBO)
    found = auto.from_pipe(pipe)
    found.set_progress_bar_config(disable=True)
    # Of the installed package, if another test in this process has imported it.
    assert type(found).__name__ == family.ours.__name__
    assert found.components.keys() == pipe.components.keys()
    assert all(component is pipe.components[name] for name, component in found.components.items())
    arguments = {} if kind == "text" else {"image": torch.rand(1, 3, 32, 32, generator=seeded())}
    arguments |= {"mask_image": torch.ones(1, 1, 32, 32)} if kind == "inpaint" else {}
    images = [p("a seven", generator=seeded(), output_type="latent", **arguments).images for p in (found, pipe)]
    assert torch.equal(*images)
    assert type(auto.from_pipe(make_pipeline("text"))) is family.stock[kind]


def test_from_pipe_of_image_to_image_publishes_the_layout(family, make_pipeline, tmp_path):
    """What only the other stock class has in its config stays out of the way of stock loaders."""
    family.ours.from_pipe(make_pipeline("image", **family.tokenizers())).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == family.stock_name
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is family.stock["text"]


def test_single_file(family, make_pipeline, repo, tmp_path):
    """A checkpoint in one file gives the student's image, with configs and tokenizers of a repository.

    The text encoder is read from the file. UNet and autoencoder are passed, because diffusers converts the names that
    they have in such files only for the architectures of full size.
    """
    pipe = make_pipeline(**family.tokenizers())
    prefix = ("cond_stage_model" if family is SD else "conditioner.embedders.0") + ".transformer.text_model."
    weights = pipe.text_encoder.state_dict()
    tensors = {prefix + name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    if family is SDXL:  # a key of the second encoder, which tells diffusers that there are any
        tensors["conditioner.embedders.1.model.positional_embedding"] = torch.zeros(1)
    save_file(tensors, tmp_path / "student.safetensors")
    passed = {name: pipe.components[name] for name in ("unet", "vae", *family.text_encoders[1:])}
    loaded = family.ours.from_single_file(str(tmp_path / "student.safetensors"), config=repo, **passed)
    assert type(loaded) is family.ours
    assert loaded.text_encoder is not pipe.text_encoder
    assert loaded.student_timesteps == (249, 499, 749, 999)
    loaded.set_progress_bar_config(disable=True)
    ours = loaded("a seven", generator=seeded(), output_type="latent").images
    torch.testing.assert_close(ours, pipe("a seven", generator=seeded(), output_type="latent").images)
