"""train_add_sd3.py as a user runs it: what it publishes, resuming, LoRA, T5 left out, and what it refuses."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

import train_add
import train_add_sd3
from pipelines import ADDPipeline, ADDSD3Pipeline
from tests.support import tiny_world
from training.checkpoints.store import load_checkpoint


def run(world, output_dir, *extra):
    train_add_sd3.main(tiny_world.flags(world, output_dir, *extra))


def draw(pipe, steps, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a handwritten one", num_inference_steps=steps, guidance_scale=0.0, output_type="pt",
        generator=torch.Generator().manual_seed(0), **kwargs,
    ).images  # fmt: skip


@pytest.fixture(scope="module")
def straight(sd3_world, tmp_path_factory):
    """Two iterations with a moving average, saved after each."""
    output_dir = tmp_path_factory.mktemp("straight") / "out"
    run(sd3_world, output_dir, "--use_ema", "--checkpointing_steps", 1)
    return output_dir


def test_student_trains(straight, sd3_world):
    trained = load_file(straight / "checkpoint-2" / "student.safetensors")
    base = load_file(sd3_world / "teacher" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(trained[name], base[name]) for name in trained)
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


def test_resumed_run_is_bit_equal(straight, sd3_world, tmp_path):
    """The run that goes on from checkpoint-1 ends with the same student, average, discriminator and optimizers."""
    output_dir = tmp_path / "out"
    shutil.copytree(straight / "checkpoint-1", output_dir / "checkpoint-1")
    run(sd3_world, output_dir, "--use_ema", "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    resumed, expected = (load_checkpoint(folder / "checkpoint-2").tensors for folder in (output_dir, straight))
    assert resumed.keys() == expected.keys() >= {"student", "student_ema", "discriminator", "student_optimizer"}
    for group, tensors in expected.items():
        assert tensors.keys() == resumed[group].keys()
        assert [name for name in tensors if not torch.equal(tensors[name], resumed[group][name])] == []


@pytest.mark.parametrize(("steps", "times"), [(1, [1000]), (2, [1000, 750]), (4, [1000, 900, 750, 500])])
def test_stock_pipeline_visits_the_students_timesteps(straight, steps, times):
    """By the number of steps alone, at the trained size without being told; ADDPipeline draws the same image."""
    stock, ours = StableDiffusion3Pipeline.from_pretrained(straight), ADDPipeline.from_pretrained(straight)
    assert type(ours) is ADDSD3Pipeline
    seen = []
    hook = stock.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    image = draw(stock, steps)
    hook.remove()
    assert seen == pytest.approx(times)
    assert image.shape == (1, 3, 32, 32)
    assert torch.equal(image, draw(ours, steps))


def test_what_the_student_is_given_in_training_is_what_the_pipelines_give_it(sd3_world, tmp_path, monkeypatch):
    """Timesteps exactly, and captions as the stock pipeline encodes them."""
    seen = []
    original = train_add.student_step

    def student_step(players, micro_batches, shared, *rest):
        hook = players.student.register_forward_pre_hook(
            lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
        )
        players.losses.sample(micro_batches[0])
        hook.remove()
        return original(players, micro_batches, shared, *rest)

    monkeypatch.setattr(train_add, "student_step", student_step)
    run(sd3_world, tmp_path / "out", "--max_train_steps", 3, "--student_timesteps", 249, 999)
    stock = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    stock.scheduler.set_timesteps(4)
    assert set(torch.cat(seen).tolist()) == {stock.scheduler.timesteps.float()[i].item() for i in (0, 3)}


def test_lora_loads_into_the_stock_pipeline(sd3_world, tmp_path):
    """On the base it draws what the fused pipeline draws, with the published scheduler; the base does not change."""
    out = tmp_path / "out"
    run(sd3_world, out, "--use_lora", "--lora_rank", 4, "--lora_alpha", 2, "--fuse_lora", "--learning_rate", 1e-2)
    stock = StableDiffusion3Pipeline.from_pretrained(sd3_world / "teacher")
    fused = ADDPipeline.from_pretrained(out)
    stock.scheduler = type(fused.scheduler).from_pretrained(out, subfolder="scheduler")
    before = draw(stock, 2, height=32, width=32)
    stock.load_lora_weights(out, weight_name="pytorch_lora_weights.safetensors")
    image = draw(stock, 2, height=32, width=32)
    assert (image - before).abs().max() > 1e-3
    torch.testing.assert_close(image, draw(fused, 2), atol=1e-4, rtol=0)
    names = set(load_file(out / "pytorch_lora_weights.safetensors"))
    for part in ("attn.to_q", "attn2.to_q", "attn.add_q_proj", "ff_context.net.2", "norm1.linear"):
        assert f"transformer.transformer_blocks.0.{part}.lora_A.weight" in names


@pytest.mark.parametrize(
    "extra",
    [
        ("--no_text_encoder_3", "--cache_dir_latents", "{tmp}/cache", "--center_crop"),
        ("--gradient_checkpointing", "--mixed_precision", "bf16", "--max_sequence_length", 20),
        ("--distillation_weighting", "nfsd", "--distillation_space", "latent"),
        ("--teacher_guidance_scale", 3, "--teacher_steps", 2, "--distillation_weighting", "sds"),
        ("--student_init", "random", "--decode_crop_size", 24),
        ("--use_lora", "--fuse_lora", "--teacher_precision", "4bit", "--mixed_precision", "bf16"),
    ],
    ids=lambda extra: " ".join(map(str, extra))[:40],
)
def test_options_run_to_a_loadable_model(sd3_world, tmp_path, extra):
    run(sd3_world, tmp_path / "out", *(str(part).format(tmp=tmp_path) for part in extra))
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert (index["text_encoder_3"] == [None, None]) == ("--no_text_encoder_3" in extra)
    none = {"text_encoder_3": None, "tokenizer_3": None} if "--no_text_encoder_3" in extra else {}
    image = draw(StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **none), 1)
    assert torch.isfinite(image).all()
    assert image.std() > 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--resolution", 36), "--resolution got 36"),
        (("--resolution", 40, "--train_batch_size", 2), None),
        (("--resolution", 72), "multiples of 8 up to 64"),
        (("--zero_terminal_snr", "rescale"), "ends at pure noise by itself; leave the flag out"),
        (("--max_sequence_length", 600), "--max_sequence_length got 600: give 1 to 512"),
        (("--export_single_file", "x.safetensors"), "--export_single_file got 'x.safetensors'"),
        (("--distillation_weighting", "nfsd", "--teacher_timestep_range", 0, 1000), "give a HIGH of at most 999"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_refused_before_anything_is_loaded(sd3_world, tmp_path, capsys, monkeypatch, extra, message):
    class Loaded(Exception):
        pass

    def load(*_):
        raise Loaded

    monkeypatch.setattr(train_add, "load_networks", load)
    with pytest.raises(Loaded if message is None else SystemExit):
        run(sd3_world, tmp_path / "out", *extra)
    if message is not None:
        assert message in capsys.readouterr().err


def test_other_scripts_and_other_latents_are_refused(sd3_world, world, tmp_path, capsys):
    """A teacher whose latents have another shape, and a repo of another family than the script's."""
    with pytest.raises(SystemExit):
        run(world, tmp_path / "out")
    assert "this script trains a StableDiffusion3Pipeline; use train_add.py" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(sd3_world, tmp_path / "out", "--pretrained_teacher_model", world / "teacher", "--pretrained_student_model",
            sd3_world / "teacher")  # fmt: skip
    assert "latents of 4 channels at 1/4 of the image's size" in capsys.readouterr().err
