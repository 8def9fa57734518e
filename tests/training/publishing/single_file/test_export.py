"""A student in one file: diffusers' own loader of such files reads every tensor back; full-size names count right."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.architectures import ARCHITECTURES
from examples.tiny.models import make_scheduler, make_tokenizer
from pipelines import ADDPipeline, student_scheduler
from training.errors import OptionError
from training.publishing.single_file import export as single_file
from training.publishing.single_file.export import export_single_file
from training.publishing.single_file.names import UNET, VAE, original_weights, unet_namer

CAPTION = "a handwritten seven"


@dataclass(frozen=True)
class Layout:
    """A released model's blocks in small widths: `unet` and `acts` (of the text encoders) are what tells them apart."""

    unet: dict
    acts: tuple[str, ...]
    widths: tuple[int, ...]
    prediction_type: str


LAYOUTS = {
    "sd15": Layout(
        {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": 2, "cross_attention_dim": 32},
        ("quick_gelu",), (32,), "epsilon",
    ),
    "sd21": Layout(
        {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": (1, 2, 2, 2), "cross_attention_dim": 32,
         "use_linear_projection": True},
        ("gelu",), (32,), "v_prediction",
    ),
    "sdxl": Layout(
        {**ARCHITECTURES["sdxl"].unet, "block_out_channels": (8, 16, 16), "attention_head_dim": (1, 2, 2),
         "cross_attention_dim": 96, "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 88},
        ("quick_gelu", "gelu"), (32, 64), "v_prediction",
    ),
}  # fmt: skip


def text_config(tokenizer, width: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=24, projection_dim=width, hidden_act=act,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip


def make_student(layout: Layout):
    """A pipeline with the layout's whole plan of blocks and every weight random, biases and norms included."""
    tokenizer = make_tokenizer([CAPTION])
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    unet = UNet2DConditionModel(**layout.unet | {"sample_size": 8, "norm_num_groups": 4})
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    encoders = [kind(text_config(tokenizer, *c)) for kind, *c in zip(kinds, layout.widths, layout.acts)]
    scheduler = student_scheduler(make_scheduler().config, layout.prediction_type)
    common = {"vae": vae, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer, "text_encoder": encoders[0]}
    for module in (vae, unet, *encoders):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    if len(encoders) == 2:
        return StableDiffusionXLPipeline(**common, text_encoder_2=encoders[1], tokenizer_2=tokenizer)
    return StableDiffusionPipeline(**common, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.fixture(scope="module", params=LAYOUTS)
def student(request, tmp_path_factory):
    """(layout, folder) of a saved student."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    make_student(LAYOUTS[request.param]).save_pretrained(folder / "student")
    return request.param, folder / "student"


def without_weights(folder: Path, to: Path) -> str:
    """The configs alone, so that a loader can have the weights only from the file."""
    return str(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors")))


def models(pipe) -> dict:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def test_diffusers_reads_every_tensor_back(student, tmp_path):
    """Bit for bit, in every network; and the pipeline draws the folder's image."""
    _, folder = student
    file = export_single_file(folder, tmp_path / "new" / "student.safetensors")
    original = ADDPipeline.from_pretrained(folder)
    loaded = type(original).from_single_file(str(file), config=without_weights(folder, tmp_path / "configs"))
    assert models(loaded).keys() == models(original).keys() >= {"unet", "vae", "text_encoder"}
    for name, network in models(original).items():
        expected, actual = network.state_dict(), models(loaded)[name].state_dict()
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(actual[key], tensor), f"{name}: {key}"
    images = []
    for pipe in (original, loaded):
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe(CAPTION, generator=torch.Generator().manual_seed(0), output_type="pt").images)
    torch.testing.assert_close(*images)
    assert [f.name for f in file.parent.iterdir()] == [file.name]  # nothing half-written stays


def test_what_front_ends_know_a_family_by(student, tmp_path):
    """The text encoders' names, 1x1 convolutions where the originals have them, and the mark of a v-predicting SDXL."""
    layout, folder = student
    weights = load_file(export_single_file(folder, tmp_path / "student.safetensors"))
    encoders = {
        "sd15": {"cond_stage_model.transformer.text_model"},
        "sd21": {"cond_stage_model.model"},
        "sdxl": {"conditioner.embedders.0.transformer.text_model", "conditioner.embedders.1.model"},
    }[layout]
    rest = {name for name in weights if not name.startswith((UNET, VAE, *encoders))}
    assert rest == ({"v_pred", "ztsnr"} if layout == "sdxl" else set())
    assert all(any(name.startswith(encoder) for name in weights) for encoder in encoders)
    assert weights[VAE + "decoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    projection = weights[UNET + "middle_block.1.proj_in.weight"]
    assert projection.ndim == (4 if layout == "sd15" else 2)


@pytest.mark.parametrize(("model", "unet", "text"), [("sd15", 686, 196), ("sd21", 686, 280), ("sdxl", 1680, 196 + 389)])
def test_full_size_names(model, unet, text):
    """As many tensors as the released files hold, under distinct names, on the meta device.

    Those hold 686 of SD's UNet, 1680 of SDXL's and 248 of the autoencoder; of CLIP ViT-L 12 x 16 + 4, of OpenCLIP 12 a
    layer and 4, and a projection in SDXL. (Their position ids and logit scale aren't weights of the pipeline.)
    """
    architecture = ARCHITECTURES[model]
    with torch.device("meta"):
        encoders = architecture.make_text_encoders()
        networks = {"unet": architecture.make_unet(), "vae": architecture.make_vae(), "text_encoder": encoders[0]}
    if len(encoders) == 2:
        networks["text_encoder_2"] = encoders[1]
    parts = {n: (m.config if n in ("unet", "vae") else m.config.to_dict(), m.state_dict()) for n, m in networks.items()}
    weights = original_weights(parts)
    assert sum(name.startswith(UNET) for name in weights) == unet
    assert sum(name.startswith(VAE) for name in weights) == 248
    assert len(weights) == unet + 248 + text
    shapes = {name.removeprefix(UNET): tuple(tensor.shape) for name, tensor in weights.items()}
    released = {
        "sd15": {"input_blocks.1.1.proj_in.weight": (320, 320, 1, 1), "output_blocks.11.0.skip_connection.weight":
                 (320, 640, 1, 1), "output_blocks.8.2.conv.weight": (640, 640, 3, 3), "output_blocks.2.1.conv.weight":
                 (1280, 1280, 3, 3), "input_blocks.9.0.op.weight": (1280, 1280, 3, 3)},
        "sd21": {"input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024), "out.2.weight": (4, 320, 3, 3),
                 "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024)},
        "sdxl": {"label_emb.0.0.weight": (1280, 2816), "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight":
                 (10240, 1280), "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
                 "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
                 "conditioner.embedders.1.model.text_projection": (1280, 1280)},
    }[model]  # fmt: skip
    assert shapes.items() >= released.items()


def test_command_with_shards_and_dtype(student, tmp_path, capsys):
    """Shards are joined, all weights cast, and the file says for which timesteps it is."""
    _, folder = student
    pipe = ADDPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*.safetensors"))) > 1
    file = tmp_path / "student.safetensors"
    single_file.main([str(tmp_path / "shards"), "--output", str(file), "--dtype", "float16"])
    assert "student.safetensors" in capsys.readouterr().out
    assert file.stat().st_mode == (tmp_path / "shards/model_index.json").stat().st_mode  # others may read it too
    whole = load_file(export_single_file(folder, tmp_path / "whole.safetensors"))
    halves = load_file(file)
    assert halves.keys() == whole.keys()
    for name in whole.keys() - {"v_pred", "ztsnr"}:
        assert torch.equal(halves[name], whole[name].half())
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["student_timesteps"] == "249,499,749,999"
        assert opened.metadata()["modelspec.prediction_type"] in ("epsilon", "v")


def test_refusals(student, tmp_path):
    """Named before a weight is read: the file's name, a LoRA alone, other families, x0 students, fp16 variants."""
    _, folder = student
    output = tmp_path / "student.safetensors"
    with pytest.raises(ValueError, match=r"--output got .*\.ckpt': it must end in \.safetensors"):
        export_single_file(folder, tmp_path / "student.ckpt")
    with pytest.raises(ValueError, match="--dtype got 'int8': choose from float32, float16"):
        export_single_file(folder, output, "int8")
    with pytest.raises(ValueError, match=r"has no model_index\.json.*A LoRA is"):
        export_single_file(tmp_path, output)
    other = Path(without_weights(folder, tmp_path / "other"))
    with pytest.raises(ValueError, match="unet has no safetensors weights"):
        export_single_file(other, output)
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"prediction_type": "sample"}))
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        export_single_file(other, output)
    (other / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="is a FluxPipeline; only"):
        export_single_file(other, output)
    with pytest.raises(SystemExit):
        single_file.main([str(other), "--output", str(output)])
    assert not output.exists()


def test_only_a_former_export_is_overwritten(student, tmp_path):
    """Another model of that name is refused and kept; an export is replaced; nothing half-written stays."""
    _, folder = student
    output = tmp_path / "student.safetensors"
    save_file({"mine": torch.zeros(1)}, output)
    before = output.read_bytes()
    with pytest.raises(OptionError, match=r"student\.safetensors': this file exists and is not an export"):
        export_single_file(folder, output)
    assert output.read_bytes() == before
    output.unlink()
    export_single_file(folder, output)
    export_single_file(folder, output, "float16")
    assert output.stat().st_size < 1.1 * sum(f.stat().st_size for f in folder.glob("*/*.safetensors")) / 2 + 2**18
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_file_that_does_not_read_back(student, tmp_path, monkeypatch):
    """A bit that did not reach the disk as it was meant to: the former export stays."""
    _, folder = student
    output = export_single_file(folder, tmp_path / "student.safetensors")
    before = output.read_bytes()

    def lossy(weights, path, metadata, save=single_file.save_file):
        save(weights, path, metadata)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(single_file, "save_file", lossy)
    with pytest.raises(single_file.ExportError, match=r"not written correctly: .* has another content"):
        export_single_file(folder, output)
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_damaged_weights_are_not_exported(student, tmp_path):
    _, folder = student
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OptionError, match="unet are damaged or truncated"):
        export_single_file(copy, tmp_path / "student.safetensors")


def test_a_network_without_original_names_is_refused(tmp_path):
    """Motion modules, say, are not dropped in silence; nor is a UNet counted by a wrong number of layers."""
    torch.manual_seed(0)
    make_student(LAYOUTS["sd15"]).save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"down_blocks.0.motion_modules.0.norm.weight": torch.zeros(8)}, file)
    with pytest.raises(ValueError, match=r"down_blocks\.0\.motion_modules.* have no name in the single-file layout"):
        export_single_file(tmp_path, tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match=r"layers_per_block=\[1, 2\]"):
        unet_namer({"layers_per_block": [1, 2]}, ())
