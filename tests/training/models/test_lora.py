"""LoRA-only training: one copy of the UNet, an adapter that stock pipelines load, and a base that never changes."""

import copy
import gc

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file

import train_add
import train_add_sdxl
from pipelines import ADDPipeline
from tests.support import tiny_world
from tests.support.runs import make_batches, prepare_run
from train_add import iteration
from training.checkpoints.store import load_checkpoint
from training.models.families import StableDiffusion, StableDiffusionXL

LORA = ("--use_lora", "--lora_rank", 4)
CASES = {
    "sd": ("world", StableDiffusion, StableDiffusionPipeline, train_add.main),
    "sdxl": ("sdxl_world", StableDiffusionXL, StableDiffusionXLPipeline, train_add_sdxl.main),
}


@pytest.fixture(params=CASES)
def lora(request, tmp_path):
    """(world, family, stock pipeline class, main) of each family."""
    world, *rest = CASES[request.param]
    return (request.getfixturevalue(world), *rest)


def image(pipe, caption="a handwritten one"):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        caption, num_inference_steps=2, guidance_scale=0.0, height=32, width=32, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def test_teacher_is_the_students_base_and_there_is_one_copy(lora, tmp_path):
    """Of all UNets alive, one; its parameters are the base's and the adapter's, and only the adapter's train."""
    world, family, *_ = lora
    gc.collect()
    before = {id(o) for o in gc.get_objects() if isinstance(o, UNet2DConditionModel)}
    prepared = prepare_run(world, tmp_path / "out", *LORA, family=family)
    gc.collect()
    unets = [o for o in gc.get_objects() if isinstance(o, UNet2DConditionModel) and id(o) not in before]
    assert len(unets) == 1
    base = UNet2DConditionModel.from_pretrained(world / "teacher", subfolder="unet").num_parameters()
    rank = 4
    adapter = sum(
        rank * (w.in_features + w.out_features)
        if isinstance(w, torch.nn.Linear)
        else rank * (w.in_channels * w.kernel_size[0] * w.kernel_size[1] + w.out_channels)
        for w in (m.get_base_layer() for m in unets[0].modules() if isinstance(m, LoraLayer))
    )
    assert adapter > 0
    assert unets[0].num_parameters() == base + adapter
    assert sum(p.numel() for p in prepared.players.trainable().values()) == adapter
    assert len(prepared.players.updaters["student"].parameters) == len(prepared.players.trainable())


def test_base_never_changes_and_the_adapter_does(lora, tmp_path):
    world, family, *_ = lora
    prepared = prepare_run(world, tmp_path / "out", *LORA, family=family)
    unet = prepared.networks.student
    batch, *more = make_batches(prepared, count=3)
    call = prepared.players.losses.teacher.unet
    with torch.no_grad():
        t = torch.tensor([500] * 4)
        x = torch.randn(4, 4, 8, 8)
        teacher = call(x, t, **batch.condition).sample
        assert torch.equal(teacher, unet(x, t, **batch.condition).sample)  # B = 0 at first
    base = {n: p.clone() for n, p in unet.named_parameters() if not p.requires_grad}
    for b in (batch, *more):
        iteration(prepared.players, [b])
    assert all(torch.equal(p, base[n]) for n, p in unet.named_parameters() if n in base)
    with torch.no_grad():
        assert torch.equal(call(x, t, **batch.condition).sample, teacher)
        assert not torch.allclose(unet(x, t, **batch.condition).sample, teacher, atol=1e-4)
    assert all(p.requires_grad for n, p in unet.named_parameters() if "lora_" in n)


def test_adapter_is_back_after_a_teacher_that_failed(world, tmp_path):
    """And its weights are never marked as anything but trainable, not even while it is off."""
    prepared = prepare_run(world, tmp_path / "out", *LORA)
    unet, call = prepared.networks.student, prepared.players.losses.teacher.unet
    trainable = [p for p in unet.parameters() if p.requires_grad]
    for p in trainable:
        torch.nn.init.normal_(p, std=0.1)
    batch = make_batches(prepared)[0]
    x, t = torch.randn(4, 4, 8, 8), torch.tensor([500] * 4)
    with torch.no_grad():
        student = unet(x, t, **batch.condition).sample
        seen = []
        hook = unet.conv_out.register_forward_hook(lambda *_: seen.append([p.requires_grad for p in trainable]))
        teacher = call(x, t, **batch.condition).sample
        hook.remove()
        assert seen == [[True] * len(trainable)]
        with pytest.raises(TypeError):
            call(x, t, no_such_argument=1)
        assert not torch.allclose(teacher, student, atol=1e-3)
        assert torch.equal(unet(x, t, **batch.condition).sample, student)


def test_teacher_call_between_forward_and_backward_leaves_the_gradient_alone(world, tmp_path):
    """The adapter is off while the teacher runs, and that is in the middle of the student's iteration."""
    prepared = prepare_run(world, tmp_path / "out", *LORA, "--gradient_checkpointing")
    unet, call = prepared.networks.student, prepared.players.losses.teacher.unet
    batch = make_batches(prepared)[0]
    x, t = torch.randn(4, 4, 8, 8), torch.tensor([999] * 4)
    for p in prepared.players.trainable().values():
        torch.nn.init.normal_(p, std=0.1)
    gradients = []
    for with_teacher in (False, True):
        loss = unet(x, t, **batch.condition).sample.square().mean()
        if with_teacher:
            with torch.no_grad():
                call(x, t, **batch.condition)
        loss.backward()
        gradients.append([p.grad.clone() for p in prepared.players.trainable().values()])
        unet.zero_grad(set_to_none=True)
    assert any(g.abs().sum() > 0 for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_output_loads_into_the_stock_pipeline_and_another_fine_tune(lora, tmp_path):
    """The stock pipeline with the adapter draws what the trained student draws; another base takes it too."""
    world, _, stock, main = lora
    out = tmp_path / "out"
    main(tiny_world.flags(world, out, *LORA, "--lora_alpha", 2, "--checkpointing_steps", 2))
    files = {"README.md", "add_run.json", "add_files.json", "checkpoint-2", "pytorch_lora_weights.safetensors"}
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == files | {"scheduler"}
    with safe_open(out / "pytorch_lora_weights.safetensors", "pt") as file:
        metadata = file.metadata()["lora_adapter_metadata"]
    assert '"unet.r": 4' in metadata
    assert '"unet.lora_alpha": 2' in metadata

    pipe = stock.from_pretrained(world / "teacher", scheduler=DDPMScheduler.from_pretrained(out, subfolder="scheduler"))
    plain = image(pipe)
    pipe.load_lora_weights(out)
    adapted = image(pipe)
    assert not torch.allclose(plain, adapted, atol=1e-3)
    trained = load_checkpoint(out / "checkpoint-2").tensors["student"]
    loaded = {n: p for n, p in pipe.unet.named_parameters() if "lora_" in n}
    assert len(trained) == len(loaded)
    for name, value in loaded.items():
        assert torch.equal(value, trained[name.replace("default_0", "default")]), name

    fine_tune = stock.from_pretrained(world / "teacher", scheduler=pipe.scheduler)
    with torch.no_grad():
        for p in fine_tune.unet.parameters():
            p.add_(0.01 * torch.randn_like(p))
    before = image(fine_tune)
    fine_tune.load_lora_weights(out)
    assert not torch.allclose(image(fine_tune), before, atol=1e-3)


def test_fused_pipeline_draws_what_base_and_adapter_draw(lora, tmp_path):
    world, _, stock, main = lora
    out = tmp_path / "out"
    main(tiny_world.flags(world, out, *LORA, "--fuse_lora", "--use_ema", "--ema_decay", 0.5))
    files = [path for path in out.rglob("*") if path.is_file() and "checkpoint" not in path.parent.name]
    assert sum(path.suffix == ".safetensors" for path in files) >= 4
    assert len({path.stat().st_mode for path in files}) == 1  # whoever may read one may read all
    fused = ADDPipeline.from_pretrained(out)
    assert not any("lora" in name for name, _ in fused.unet.named_parameters())
    pipe = stock.from_pretrained(world / "teacher", scheduler=DDPMScheduler.from_pretrained(out, subfolder="scheduler"))
    pipe.load_lora_weights(out)
    assert torch.allclose(image(fused), image(pipe), atol=1e-4)


def test_killed_and_resumed_run_is_bit_equal_and_holds_the_adapter_alone(lora, tmp_path):
    """Dropout is on: it is the one thing that draws from the global random state."""
    world, _, _, main = lora
    extra = (*LORA, "--lora_dropout", 0.2, "--use_ema", "--checkpointing_steps", 2)
    main(tiny_world.flags(world, tmp_path / "a", *extra, "--max_train_steps", 4))
    for steps in (2, 4):
        main(tiny_world.flags(world, tmp_path / "b", *extra, "--max_train_steps", steps,
                              "--resume_from_checkpoint", "latest"))  # fmt: skip
    a, b = (load_checkpoint(tmp_path / name / "checkpoint-4").tensors for name in "ab")
    assert all("lora_" in name for name in a["student"])
    assert all("lora_" in name for name in a["student_ema"])
    for group, tensors in a.items():
        assert all(torch.equal(value, b[group][name]) for name, value in tensors.items()), group
    ours, theirs = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in "ab")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_base_in_half_precision_trains_float32_adapters(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", *LORA, "--mixed_precision", "bf16")
    parameters = dict(prepared.networks.student.named_parameters())
    assert {p.dtype for name, p in parameters.items() if "lora_" in name} == {torch.float32}
    base = {name: p.dtype for name, p in parameters.items() if "lora_" not in name}
    assert {dtype for name, dtype in base.items() if name.startswith("mid_block")} == {torch.bfloat16}
    assert base["conv_out.weight"] == torch.float32  # of the outermost layers, whose rounding is amplified


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_adapter_on_a_quantized_base(world, tmp_path, precision):
    """QLoRA: the base has its linear maps in 8 or 4 bits and the adapter moves."""
    prepared = prepare_run(
        world, tmp_path / "out", *LORA, "--mixed_precision", "bf16", "--teacher_precision", precision
    )
    unet = prepared.networks.student
    integers = [n for n, p in unet.named_parameters() if p.dtype in (torch.int8, torch.uint8)]
    assert integers
    before = copy.deepcopy({n: p.detach().clone() for n, p in prepared.players.trainable().items()})
    _, skipped = iteration(prepared.players, make_batches(prepared))
    assert skipped == 0
    assert any(not torch.equal(p, before[n]) for n, p in prepared.players.trainable().items())


def test_target_modules_that_are_not_there_are_refused(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_add.main(tiny_world.flags(world, tmp_path / "out", *LORA, "--lora_target_modules", "to_nowhere"))
    assert "--lora_target_modules got ('to_nowhere',)" in capsys.readouterr().err


def test_folder_that_holds_a_whole_model_is_refused(world, capsys):
    """Or the old student would be published beside the new adapter."""
    with pytest.raises(SystemExit):
        train_add.main(tiny_world.flags(world, world / "teacher", *LORA))
    assert "the folder contains a full model" in capsys.readouterr().err
