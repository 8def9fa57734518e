"""What makes a step fit: precisions of the frozen networks, cropped and tiny decoding, checkpointing, together."""

import pytest
import torch
from diffusers import AutoencoderTiny

import train_add
from pipelines import ADDPipeline
from tests.support import tiny_world
from tests.support.runs import make_batches, options_of, prepare_run
from train_add import iteration
from training.models.quantization import quantize_linears
from training.options.memory_advice import advice


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory):
    """An AutoencoderTiny with the tiny world's 4 pixels a latent."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taesd")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def bytes_of(network):
    return sum(p.numel() * p.element_size() for p in network.parameters())


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_only_the_crop_is_decoded_and_judged(world, tmp_path, space):
    """Crop and halo go through the decoder; the discriminator sees the real image's same square."""
    prepared = prepare_run(world, tmp_path / "out", "--decode_crop_size", 8, "--decode_crop_halo", 1,
                           "--distillation_space", space, "--no_diffaugment")  # fmt: skip
    batch = make_batches(prepared)[0]
    decoded, judged = [], []
    prepared.networks.latents.vae.decoder.register_forward_hook(lambda m, i, o: decoded.append(o.shape[-2:]))
    features = prepared.players.losses.discriminator.features
    prepared.players.losses.discriminator.features = lambda images, *rest: (
        judged.append(images) or features(images, *rest)
    )
    iteration(prepared.players, [batch])
    assert len(decoded) == (2 if space == "pixel" else 1)
    assert all(max(shape) <= (2 + 2) * 4 for shape in decoded)
    real, fake = judged
    assert fake.shape == real.shape == (4, 3, 8, 8)
    top, left = batch.decode_window.top * 4, batch.decode_window.left * 4
    assert torch.equal(real, batch.x0[..., top : top + 8, left : left + 8])


def test_window_moves_from_iteration_to_iteration_and_is_the_batchs(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", "--decode_crop_size", 8)
    from distillation.noise import draw_decode_window

    places = {draw_decode_window(0, i) for i in range(20)}
    assert len(places) == 20
    assert make_batches(prepared)[0].decode_window.size == 2


def test_tiny_decoder_serves_the_losses_and_the_full_one_is_published(world, tiny_vae, tmp_path):
    prepared = prepare_run(world, tmp_path / "prepared", "--pretrained_tiny_vae_model", tiny_vae)
    decoder = prepared.networks.latents.vae.decoder
    decoder.register_forward_hook(lambda *_: pytest.fail("the full decoder ran"))
    _, skipped = iteration(prepared.players, make_batches(prepared))
    assert skipped == 0
    train_add.main(tiny_world.flags(world, tmp_path / "out", "--pretrained_tiny_vae_model", tiny_vae))
    assert type(ADDPipeline.from_pretrained(tmp_path / "out").vae).__name__ == "AutoencoderKL"


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.16)])
def test_quantized_linears_compute_nearly_the_same_in_less_memory(bits, tolerance):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Sequential(torch.nn.Linear(512, 128)))
    network.to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(16, 256, dtype=torch.bfloat16)
    expected, before = network(x), bytes_of(network)
    quantized = quantize_linears(network, bits)
    assert type(quantized[1][0]).__module__.startswith("bitsandbytes")
    assert (quantized(x) - expected).norm() < tolerance * expected.norm()
    assert bytes_of(quantized) < before * (bits + 0.6) / 16
    assert not any(p.requires_grad for p in quantized.parameters())


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
def test_teacher_precision_is_the_teachers_alone(world, tmp_path, precision):
    """Student and losses stay in float32, and the target stays near the float32 teacher's."""
    whole = prepare_run(world, tmp_path / "a")
    low = prepare_run(world, tmp_path / "b", "--teacher_precision", precision)
    assert low.networks.student.dtype == torch.float32
    assert bytes_of(low.networks.teacher) < 0.75 * bytes_of(whole.networks.teacher)
    batch = make_batches(whole)[0]
    sample = whole.players.losses.sample(batch)
    a, b = (prepared.players.losses.distillation(batch, sample).item() for prepared in (whole, low))
    assert a != b
    assert abs(a - b) < 0.1 * a


def test_float32_teacher_in_a_half_precision_run(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "a", "--teacher_precision", "fp32", "--mixed_precision", "bf16")
    seen = []
    prepared.networks.teacher.conv_out.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    iteration(prepared.players, make_batches(prepared))
    assert seen == [torch.float32]


def test_everything_together(sdxl_world, tiny_vae, tmp_path):
    """All that saves memory in one run, resumed once, down to a loadable model."""
    import train_add_sdxl

    flags = (
        "--use_lora", "--lora_rank", 2, "--teacher_precision", "4bit", "--mixed_precision", "bf16",
        "--gradient_checkpointing", "--use_8bit_adam", "--pretrained_tiny_vae_model", tiny_vae,
        "--decode_crop_size", 16, "--cache_dir_latents", tmp_path / "cache", "--center_crop",
        "--distillation_space", "latent",
        "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest", "--validation_prompts", "one",
        "--validation_steps", 1, "--fuse_lora",
    )  # fmt: skip
    for steps in (1, 2):
        train_add_sdxl.main(tiny_world.flags(sdxl_world, tmp_path / "out", *flags, "--max_train_steps", steps))
    pipe = ADDPipeline.from_pretrained(tmp_path / "out")
    assert pipe.vae.dtype == torch.float32
    assert pipe("one", height=32, width=32, output_type="np").images[0].std() > 0


def out_of_memory(world, tmp_path, monkeypatch, capsys, *flags):
    def fail(*_):
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    monkeypatch.setattr("train_add.iteration", fail)
    with pytest.raises(SystemExit) as ended:
        train_add.main(tiny_world.flags(world, tmp_path / "out", *flags))
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_out_of_memory_names_what_saves_most(world, tmp_path, monkeypatch, capsys):
    """Of what is not in use yet."""
    message = out_of_memory(world, tmp_path, monkeypatch, capsys)
    assert "tried to allocate 2.00 GiB" in message
    assert "first: --gradient_checkpointing (" in message
    assert "--train_batch_size 2 --gradient_accumulation_steps 2" in message
    monkeypatch.undo()
    message = out_of_memory(world, tmp_path, monkeypatch, capsys, "--gradient_checkpointing", "--train_batch_size", 1)
    assert "first: --use_8bit_adam (" in message
    assert "--gradient_checkpointing" not in message
    assert "--train_batch_size" not in message
    monkeypatch.undo()
    message = out_of_memory(world, tmp_path, monkeypatch, capsys, "--train_batch_size", 1)
    assert "first: --use_8bit_adam (" in message  # by count: 14 GiB on SDXL, where checkpointing saves next to none
    assert "; --gradient_checkpointing (" in message


def test_advice_names_flags_that_exist_and_ends():
    """With all of it in use it says so; each piece of advice begins with flags that the script takes."""
    teacher = ("--pretrained_teacher_model", "x")
    flags = [text.split(" (")[0] for text in advice(options_of(*teacher)).split(": ", 1)[1].split("; ")]
    options_of(*teacher, *" ".join(flags).replace("DIR", "d").split())
    used = "--gradient_checkpointing --use_8bit_adam --train_batch_size 1 --cache_dir_latents d --use_lora"
    more = "--decode_crop_size 224 --distillation_space latent --teacher_precision 4bit"
    assert "All memory-saving flags are already in use" in advice(options_of(*teacher, *used.split(), *more.split()))
