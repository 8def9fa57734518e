"""The tiny world in SDXL's layout: what the UNet is told, what is shared with Stable Diffusion's, and what is not."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from evaluation.tiny.split import read_split
from examples.tiny import layouts
from examples.tiny.models import TEXT_WIDTH, TEXT_WIDTH_2, make_clip, make_scheduler, make_tokenizer, make_vae
from tests.examples.tiny_build import run, write_folder

CAPTIONS = ["a red square", "a blue square", "a green square"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict:
    """Both layouts, built from one folder."""
    root = tmp_path_factory.mktemp("layouts")
    folder = write_folder(root / "images")
    for layout in ("sd", "sdxl"):
        run(root / layout, folder, "--layout", layout)
    return {layout: root / layout for layout in ("sd", "sdxl")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list:
    """Folders of two untrained CLIPs, of the widths and paddings that the builder gives them."""
    folders = []
    for width, pad_token in ((TEXT_WIDTH, None), (TEXT_WIDTH_2, "!")):
        folders.append(tmp_path_factory.mktemp("clip"))
        tokenizer = make_tokenizer(CAPTIONS, pad_token=pad_token)
        make_clip(tokenizer, width).save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders


def assemble(clips: list) -> DiffusionPipeline:
    torch.manual_seed(0)
    return layouts.assemble(clips, make_vae((8, 8, 8)), make_scheduler())


def outputs(cls, folder, captions: list[str]):
    """The text tower's, straight from the folder."""
    tokens = CLIPTokenizer.from_pretrained(folder)(captions, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return cls.from_pretrained(folder).eval()(tokens, output_hidden_states=True)


def test_conditions_of_stable_diffusion(clips):
    """The last hidden state, in row 0 of the empty caption."""
    conditions = layouts.encode_captions(assemble(clips[:1]), CAPTIONS)
    expected = outputs(CLIPTextModel, clips[0], ["", *CAPTIONS]).last_hidden_state
    assert conditions.keys() == {"encoder_hidden_states"}
    torch.testing.assert_close(conditions["encoder_hidden_states"], expected)


def test_conditions_of_sdxl(clips):
    """Both encoders' last hidden states but one, the second's pooled text, and sizes; zeros in row 0."""
    conditions = layouts.encode_captions(assemble(clips), CAPTIONS)
    first, second = (outputs(c, f, CAPTIONS) for c, f in zip((CLIPTextModel, CLIPTextModelWithProjection), clips))
    hidden, added = conditions["encoder_hidden_states"], conditions["added_cond_kwargs"]
    torch.testing.assert_close(hidden[1:], torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1))
    torch.testing.assert_close(added["text_embeds"][1:], second.text_embeds)
    assert hidden[0].count_nonzero() == added["text_embeds"][0].count_nonzero() == 0
    assert added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 4


@pytest.mark.parametrize("count", [1, 2], ids=["sd", "sdxl"])
def test_many_captions_are_encoded_in_chunks(clips, monkeypatch, count):
    """Order and the one row without a caption survive."""
    pipeline = assemble(clips[:count])
    whole = layouts.encode_captions(pipeline, CAPTIONS)
    monkeypatch.setattr(layouts, "CHUNK", 2)
    torch.testing.assert_close(layouts.encode_captions(pipeline, CAPTIONS), whole)


@pytest.mark.parametrize("count", [1, 2], ids=["sd", "sdxl"])
def test_pipeline_feeds_its_unet_the_same(clips, count):
    """What the teacher is trained on is what its stock pipeline passes, guided: no caption first, then the caption."""
    pipeline, seen = assemble(clips[:count]), []
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    pipeline(CAPTIONS[1], num_inference_steps=1, guidance_scale=2.0, output_type="latent")
    expected = layouts.pick(layouts.encode_captions(pipeline, CAPTIONS), torch.tensor([0, 2]))
    for name, value in expected.items():
        torch.testing.assert_close(seen[0][name], value, atol=1e-5, rtol=1e-5)


def test_sdxl_teacher_draws_with_a_stock_pipeline(worlds):
    """Prompt to picture; its encoders are the CLIPs', and the latents that it diffuses have unit variance."""
    pipeline = DiffusionPipeline.from_pretrained(worlds["sdxl"] / "teacher")
    assert type(pipeline) is StableDiffusionXLPipeline
    picture = pipeline("a red square", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    assert np.isfinite(picture).all()
    clip_2 = CLIPModel.from_pretrained(worlds["sdxl"] / "clip_2").eval()
    ids = pipeline.tokenizer_2(["a red square"], padding="max_length", return_tensors="pt").input_ids
    assert ids[0, -1] == pipeline.tokenizer_2.convert_tokens_to_ids("!")
    with torch.no_grad():
        expected = clip_2.get_text_features(ids).pooler_output
        torch.testing.assert_close(pipeline.text_encoder_2(ids).text_embeds, expected)
    train = read_split(worlds["sdxl"] / "data" / "train").pixels
    with torch.no_grad():
        latents = pipeline.vae.encode(train).latent_dist.sample() * pipeline.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.03)


def test_layouts_share_all_but_the_teachers_own(worlds):
    """Data, first CLIP, feature network and evaluator are the same bytes; the latent spaces are two."""
    stages = {name: json.loads((folder / "build.json").read_text())["stages"] for name, folder in worlds.items()}
    assert set(stages["sdxl"]) - set(stages["sd"]) == {"clip_2"}
    same = {name for name, stage in stages["sd"].items() if stage["sha256"] == stages["sdxl"][name]["sha256"]}
    assert same == {"data", "clip", "feature_network", "evaluator"}
    vaes = [AutoencoderKL.from_pretrained(folder / "autoencoder") for folder in worlds.values()]
    assert vaes[0].config.scaling_factor != vaes[1].config.scaling_factor
    assert not torch.equal(vaes[0].quant_conv.weight, vaes[1].quant_conv.weight)


def test_changed_layout_builds_only_what_depends_on_it(worlds, tmp_path, capsys):
    """In a folder of Stable Diffusion's layout: the second CLIP, and what has random numbers of its own."""
    shutil.copytree(worlds["sd"], tmp_path / "world")
    run(tmp_path / "world", worlds["sd"].parent / "images", "--layout", "sdxl")
    built = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": building" in line]
    assert built == ["autoencoder", "clip_2", "teacher", "preview"]
