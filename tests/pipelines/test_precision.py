"""bfloat16 against float32: one step of a trained epsilon student, in training and in both families' pipelines."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from distillation.schedule import NoiseSchedule
from distillation.student import student_sample
from examples.tiny.models import make_scheduler
from pipelines.precision import keep_output_in_float32, to_bfloat16
from tests.pipelines.denoiser import random_condition, trained_unet
from tests.pipelines.families import SD
from tests.pipelines.test_published_layout import digests

LIMIT = 0.02
BATCH = 8


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).square().mean().sqrt().item()


def noise() -> torch.Tensor:
    return torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def training_sample(family, unet, dtype=None) -> torch.Tensor:
    """x^_theta at the last timestep, as in training, under autocast to `dtype`."""
    schedule = NoiseSchedule.from_alphas_cumprod(make_scheduler().alphas_cumprod, "epsilon")
    s = torch.full((BATCH,), 999)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        return student_sample(unet, schedule, noise(), s, random_condition(family, BATCH))


@torch.no_grad()
def test_training_under_autocast(family):
    """The error without it is the one to be fixed; with it, it is five times smaller, and float32 is untouched."""
    unet = trained_unet(family)
    expected = training_sample(family, unet)
    before = rms(training_sample(family, unet, torch.bfloat16), expected)
    assert 0.05 < before < 0.1
    assert keep_output_in_float32(unet) is unet
    assert torch.equal(training_sample(family, unet), expected)
    after = training_sample(family, unet, torch.bfloat16)
    assert rms(after, expected) < min(LIMIT, before / 5)
    assert torch.equal(training_sample(family, keep_output_in_float32(unet), torch.bfloat16), after)  # once is enough
    assert all(p.dtype == torch.float32 for p in unet.parameters())


@torch.no_grad()
def test_other_dtypes_are_unchanged(family):
    """float16 autocast and float16 weights give the bits that they give without it."""
    unet, plain = keep_output_in_float32(trained_unet(family)), trained_unet(family)
    for dtype in (torch.float16, None):
        assert torch.equal(training_sample(family, unet, dtype), training_sample(family, plain, dtype))
    sample, condition = noise().half(), random_condition(family, BATCH, torch.float16)
    for model in (unet, plain):
        torch.nn.Module.to(model, torch.float16)
    outputs = [model(sample, 999, **condition).sample for model in (unet, plain)]
    assert outputs[0].dtype == torch.float16
    assert torch.equal(*outputs)


def gradients(unet) -> dict[str, torch.Tensor]:
    unet.train().requires_grad_(True)
    training_sample(SD, unet, torch.bfloat16).square().mean().backward()
    return {name: p.grad for name, p in unet.named_parameters()}


def test_gradients_and_checkpointing():
    """Gradients reach every weight, are near those of float32, and those with checkpointing are the same."""
    unet, checkpointed = (keep_output_in_float32(trained_unet(SD)) for _ in range(2))
    checkpointed.enable_gradient_checkpointing()
    actual, recomputed = gradients(unet), gradients(checkpointed)
    exact = trained_unet(SD).train().requires_grad_(True)
    training_sample(SD, exact).square().mean().backward()
    expected = {name: p.grad for name, p in exact.named_parameters()}
    for name in expected:
        assert torch.equal(actual[name], recomputed[name]), name
    flat = [torch.cat([found[name].flatten() for name in expected]) for found in (actual, expected)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.999


def test_autocast_is_restored():
    """After a pass, and after one that failed within a layer kept in float32."""
    unet = keep_output_in_float32(trained_unet(SD))
    with torch.autocast("cpu", torch.bfloat16):
        unet(noise(), 999, **random_condition(SD, BATCH))
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(RuntimeError):
            unet(noise()[:, :3], 999, **random_condition(SD, BATCH))
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("adapted_first", [True, False])
def test_lora_under_autocast(adapted_first):
    """An adapter on layers inside and outside of those in float32, added before or afterwards."""

    def adapt(unet):
        torch.manual_seed(0)
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1", "conv_out"], init_lora_weights=False))

    unet = trained_unet(SD)
    plain = copy.deepcopy(unet)
    adapt(plain)
    if not adapted_first:
        keep_output_in_float32(unet)
    adapt(unet)
    keep_output_in_float32(unet)  # again: conv_out has become another module
    expected = training_sample(SD, plain)
    before = rms(training_sample(SD, plain, torch.bfloat16), expected)
    assert torch.equal(training_sample(SD, unet), expected)
    assert rms(training_sample(SD, unet, torch.bfloat16), expected) < before / 3


@torch.no_grad()
def test_copies_compute_with_their_own_weights():
    """A deep copy (of an EMA, say) is independent of the original, and as precise."""
    unet = keep_output_in_float32(trained_unet(SD))
    expected = training_sample(SD, unet, torch.bfloat16)
    copied = copy.deepcopy(unet)
    for parameter in unet.parameters():
        parameter.zero_()
    assert torch.equal(training_sample(SD, copied, torch.bfloat16), expected)


@torch.no_grad()
def test_compiled():
    """Traced and replayed, under autocast and with bfloat16 weights."""
    unet = keep_output_in_float32(trained_unet(SD))
    expected = training_sample(SD, unet, torch.bfloat16)
    unet.compile(backend="eager")
    torch.testing.assert_close(training_sample(SD, unet, torch.bfloat16), expected)
    low = to_bfloat16(trained_unet(SD))
    condition = random_condition(SD, BATCH, torch.bfloat16)
    expected = low(noise(), 999, **condition).sample
    low.compile(backend="eager")
    torch.testing.assert_close(low(noise(), 999, **condition).sample, expected)


@pytest.fixture
def student(family, make_pipeline, tmp_path) -> str:
    """A published student with the trained UNet."""
    make_pipeline(unet=trained_unet(family), **family.tokenizers()).save_pretrained(tmp_path / "student")
    return str(tmp_path / "student")


def latents_of(pipe, **arguments) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 0.0} | arguments
    prompts = ["a seven"] * BATCH
    return pipe(prompts, generator=generator, **arguments).images


def image_arguments(mode: str) -> dict:
    picture = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    mask = {"mask_image": (picture[:, :1] > 0.5).float()} if mode == "inpaint" else {}
    return {} if mode == "text" else {"image": picture, "strength": 1.0, **mask}


def test_pipeline_in_bfloat16(family, student):
    """One step from the same seed: the noise and the latents of float32, which stock bfloat16 misses."""
    expected = latents_of(family.ours.from_pretrained(student))
    starts = {"latents": noise()}
    given = latents_of(family.ours.from_pretrained(student), **starts)
    stock = family.stock["text"].from_pretrained(student, dtype=torch.bfloat16)
    before = rms(latents_of(stock, latents=noise().bfloat16()), given)
    assert 0.05 < before < 0.12
    ours = family.ours.from_pretrained(student, dtype=torch.bfloat16)
    assert ours.unet.dtype == ours.vae.dtype == ours.dtype == torch.bfloat16
    actual = latents_of(ours)
    assert actual.dtype == torch.float32
    assert rms(actual, expected) < LIMIT
    assert rms(latents_of(ours, **starts), given) < min(LIMIT, before / 5)
    assert torch.equal(latents_of(family.ours.from_pretrained(student, torch_dtype=torch.bfloat16)), actual)


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_every_kind_of_call_in_bfloat16(family, student, mode, guidance_scale):
    """Images of four steps, with and without guidance, come out of the autoencoder; a callback sees float32."""
    pipe = family.ours.from_pretrained(student, dtype=torch.bfloat16)
    seen = set()

    def note(_, step, t, kwargs):
        seen.add(kwargs["latents"].dtype)
        return kwargs

    arguments = {"num_inference_steps": 4, "guidance_scale": guidance_scale, **image_arguments(mode)}
    actual = latents_of(pipe, output_type="pt", callback_on_step_end=note, **arguments)
    assert actual.shape == (BATCH, 3, 32, 32)
    assert torch.isfinite(actual).all()
    assert seen == {torch.float32}


def test_students_without_the_factor_are_stocks(family, make_pipeline, tmp_path):
    """x0 = -v multiplies nothing: in bfloat16, too, the image is the stock pipeline's bit for bit."""
    make_pipeline(prediction_type="v_prediction", **family.tokenizers()).save_pretrained(tmp_path)
    pipes = [cls.from_pretrained(tmp_path, dtype=torch.bfloat16) for cls in (family.ours, family.stock["text"])]
    ours, stock = (latents_of(pipe, num_inference_steps=2) for pipe in pipes)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, stock)
    assert not pipes[0].unet.conv_in._forward_pre_hooks


def test_float16_is_stocks(family, student):
    """In float16 the image stays the stock pipeline's bit for bit, and the UNet has no hooks."""
    pipes = [cls.from_pretrained(student, dtype=torch.float16) for cls in (family.ours, family.stock["text"])]
    assert torch.equal(*(latents_of(pipe) for pipe in pipes))
    assert not pipes[0].unet.conv_in._forward_pre_hooks


def test_saving_in_bfloat16_shows_nothing_of_it(family, student, tmp_path):
    """The weights are those of the stock pipeline in bfloat16, byte for byte, and so is the UNet's config."""
    for name, cls in {"ours": family.ours, "stock": family.stock["text"]}.items():
        pipe = cls.from_pretrained(student, dtype=torch.bfloat16)
        if name == "ours":
            latents_of(pipe)
        pipe.save_pretrained(tmp_path / name)
    ours, stock = digests(tmp_path / "ours"), digests(tmp_path / "stock")
    for file in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert ours[file] == stock[file]
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "ours")) is family.stock["text"]


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_group_offload"])
def test_offloading_in_bfloat16(student, family, offload):
    """Offloading does not change the latents."""
    pipe = family.ours.from_pretrained(student, dtype=torch.bfloat16)
    expected = latents_of(pipe)
    if offload == "enable_model_cpu_offload":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(latents_of(pipe), expected)


def test_optimize_and_lora_in_bfloat16(student, tmp_path):
    """Fused, traced and adapted pipelines stay near the latents of float32."""
    family = SD
    if "StableDiffusionXL" in (DiffusionPipeline.load_config(student)["_class_name"]):
        pytest.skip("tracing takes its time, and the families' UNets differ little")
    unet = trained_unet(family)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    layers = {name: 0.5 * weight for name, weight in get_peft_model_state_dict(unet).items()}
    family.stock["text"].save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipe = family.ours.from_pretrained(student, dtype=dtype)
        bare = latents_of(pipe.optimize(compile={"backend": "eager"}))
        pipe.load_lora_weights(str(tmp_path / "lora"))
        results[dtype] = (bare, latents_of(pipe))
    for low, full in zip(results[torch.bfloat16], results[torch.float32]):
        assert rms(low, full) < 2 * LIMIT
    assert rms(*results[torch.float32]) > 5 * LIMIT


def test_cast_after_loading(family, student):
    """`to(torch.bfloat16)` rounds every weight first; what is left of the error is that of the weights."""
    expected = latents_of(family.ours.from_pretrained(student))
    pipe = family.ours.from_pretrained(student).to(torch.bfloat16)
    assert pipe.unet.conv_in.weight.dtype == torch.float32
    assert rms(latents_of(pipe), expected) < 0.06
    pipe.to(torch.float32)
    assert latents_of(pipe).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in pipe.unet.parameters())


def test_a_stock_pipeline_of_the_same_components(family, student):
    """It takes them from ours and draws, though its own latents are in bfloat16."""
    pipe = family.ours.from_pretrained(student, dtype=torch.bfloat16)
    expected = latents_of(pipe, output_type="pt")
    stock = family.stock["text"].from_pipe(pipe, dtype=torch.bfloat16)
    assert rms(latents_of(stock, output_type="pt"), expected) < 0.1
