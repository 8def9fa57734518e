"""What README says of a user's own models: a fine-tune as the teacher, and style LoRAs with ADD students."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from pipelines import ADDPipeline
from tests.support.runs import prepare_run, run

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def fine_tune(world, tmp_path_factory):
    """A whole pipeline whose UNet has been trained further: the teacher's weights, changed a little."""
    pipe = StableDiffusionPipeline.from_pretrained(world / "teacher")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    folder = tmp_path_factory.mktemp("fine_tune") / "my-finetune"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(fine_tune, world, tmp_path_factory):
    """What a short run with all weights makes of the fine-tune."""
    folder = tmp_path_factory.mktemp("student") / "my-fast-finetune"
    run(world, folder, "--pretrained_teacher_model", fine_tune, "--learning_rate", 1e-4)
    return folder


@pytest.fixture(scope="module")
def add_lora(world, tmp_path_factory):
    """The published folder of a LoRA student of `world`."""
    folder = tmp_path_factory.mktemp("add") / "my-lora"
    run(world, folder, "--use_lora", "--lora_rank", 4, "--lora_alpha", 8, "--learning_rate", 1e-2)
    return folder


@pytest.fixture(scope="module")
def style_lora(world, tmp_path_factory):
    """A LoRA of another rank and other layers, as trained for the base model and saved by stock diffusers."""
    torch.manual_seed(4)
    unet = UNet2DConditionModel.from_pretrained(world / "teacher", subfolder="unet")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    folder = tmp_path_factory.mktemp("style") / "my-style-lora"
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet), unet_lora_adapter_metadata=config.to_dict()
    )
    return folder


def image(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a handwritten one", num_inference_steps=1, guidance_scale=0.0, height=32, width=32, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def test_a_finished_student_starts_a_new_run(world, student, tmp_path):
    """With another teacher, in its own folder: docs/troubleshooting.md, "Resume with other flags"."""
    prepared = prepare_run(world, tmp_path / "out", "--pretrained_student_model", student)
    weights, teacher = load_file(student / UNET), load_file(world / "teacher" / UNET)
    assert all(torch.equal(prepared.networks.student.state_dict()[name], value) for name, value in weights.items())
    assert all(torch.equal(prepared.networks.teacher.state_dict()[name], value) for name, value in teacher.items())
    assert prepared.state.step == 0


def differ(a, b):
    return (a - b).abs().max() > 1e-3


def equal(a, b):
    return torch.allclose(a, b, atol=1e-5)


def test_the_student_of_a_fine_tune_starts_from_its_weights(world, fine_tune, tmp_path):
    """And the teacher is the fine-tune, too: not the base that it was made from."""
    prepared = prepare_run(world, tmp_path / "out", "--pretrained_teacher_model", fine_tune)
    expected, base = (load_file(folder / UNET) for folder in (fine_tune, world / "teacher"))
    for network in (prepared.networks.student, prepared.networks.teacher):
        weights = network.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        assert not any(torch.equal(weights[name], value) for name, value in base.items())


@pytest.mark.parametrize("form", ["a UNet alone", "a base with a LoRA"])
def test_other_forms_become_a_teacher(world, fine_tune, style_lora, tmp_path, form):
    """As docs/recipes.md converts them: the student starts from exactly the weights that the form stands for."""
    if form == "a UNet alone":
        unet = UNet2DConditionModel.from_pretrained(fine_tune, subfolder="unet")
        pipe = StableDiffusionPipeline.from_pretrained(world / "teacher", unet=unet)
        expected = image(StableDiffusionPipeline.from_pretrained(fine_tune))
    else:
        pipe = StableDiffusionPipeline.from_pretrained(world / "teacher")
        bare = image(pipe)
        pipe.load_lora_weights(style_lora)
        expected = image(pipe)
        assert differ(expected, bare)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "teacher")
    prepared = prepare_run(world, tmp_path / "out", "--pretrained_teacher_model", tmp_path / "teacher")
    pipe.unet = prepared.networks.student
    assert torch.allclose(image(pipe), expected, atol=1e-3)


def test_the_student_of_a_fine_tune_is_published_and_loads(world, fine_tune, student):
    """Two short steps have moved it, and it is still far nearer to the fine-tune than to the base."""
    trained, start, base = (load_file(folder / UNET) for folder in (student, fine_tune, world / "teacher"))

    def distance(other):
        return sum((trained[name] - value).square().sum() for name, value in other.items()).sqrt()

    assert 0 < distance(start) < 0.2 * distance(base)
    images = [image(cls.from_pretrained(student)) for cls in (StableDiffusionPipeline, ADDPipeline)]
    assert torch.equal(*images)
    assert "my-finetune" in (student / "README.md").read_text()


def test_add_lora_and_style_lora_together(world, add_lora, style_lora):
    """Two adapters on the stock pipeline: both act, a weight of 0 switches one off, and weights are obeyed."""
    scheduler = DDPMScheduler.from_pretrained(add_lora, subfolder="scheduler")
    pipe = StableDiffusionPipeline.from_pretrained(world / "teacher", scheduler=scheduler)
    bare = image(pipe)
    pipe.load_lora_weights(add_lora, adapter_name="add")
    add_alone = image(pipe)
    pipe.load_lora_weights(style_lora, adapter_name="style")

    def stacked(add, style):
        pipe.set_adapters(["add", "style"], adapter_weights=[add, style])
        return image(pipe)

    pipe.set_adapters("style")
    style_alone, both = image(pipe), stacked(1.0, 0.8)
    assert all(differ(both, other) for other in (bare, add_alone, style_alone, stacked(1.0, 0.4)))
    assert equal(stacked(1.0, 0.0), add_alone)
    assert equal(stacked(0.0, 1.0), style_alone)
    assert equal(stacked(0.0, 0.0), bare)


@pytest.mark.parametrize("cls", [ADDPipeline, StableDiffusionPipeline])
def test_style_lora_on_a_student_with_all_weights(student, style_lora, cls):
    """As the only adapter: it acts by its weight and comes off again; the student's own weights are what they were."""
    pipe = cls.from_pretrained(student)
    plain, weights = image(pipe), copy.deepcopy(pipe.unet.state_dict())
    pipe.load_lora_weights(style_lora, adapter_name="style")
    styled = {}
    for weight in (0.0, 0.4, 0.8):
        pipe.set_adapters("style", adapter_weights=weight)
        styled[weight] = image(pipe)
    assert equal(styled[0.0], plain)
    assert differ(styled[0.4], plain)
    assert differ(styled[0.8], styled[0.4])
    pipe.unload_lora_weights()
    assert torch.equal(image(pipe), plain)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())
