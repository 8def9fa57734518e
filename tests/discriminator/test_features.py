"""The frozen feature network against hooks on the stock transformers models."""

import json

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from discriminator.features import FeatureNetwork

WIDTH, SIDE = 16, 32


def options(layers=4):
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }


def clip_vision_config(layers=4):
    return CLIPVisionConfig(intermediate_size=32, **options(layers))


BACKBONES = {
    "dinov2": lambda layers=4: Dinov2Model(Dinov2Config(mlp_ratio=2, **options(layers))),
    "dinov2_with_registers": lambda layers=4: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=3, **options(layers))
    ),
    "dinov3_vit": lambda layers=4: DINOv3ViTModel(
        DINOv3ViTConfig(intermediate_size=32, num_register_tokens=2, **options(layers))
    ),
    "vit": lambda layers=4: ViTModel(ViTConfig(intermediate_size=32, **options(layers)), add_pooling_layer=False),
    "clip_vision_model": lambda layers=4: CLIPVisionModel(clip_vision_config(layers)),
}
BLOCKS = ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer", "ViTLayer", "CLIPEncoderLayer")
PREFIX = {"dinov2_with_registers": 4, "dinov3_vit": 3}  # class token and registers; 1 for the others


def make(family, layers=4):
    """An untrained backbone whose every parameter is random, LayerNorms, registers and position embeddings too."""
    torch.manual_seed(0)
    backbone = BACKBONES[family](layers)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def images(batch=2, side=SIDE):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def hooked(backbone, run):
    """Inputs and outputs of every transformer block during `run()`, in order."""
    blocks = [m for m in backbone.modules() if type(m).__name__ in BLOCKS]
    seen = []
    handles = [b.register_forward_hook(lambda m, args, out: seen.append((args[0], out))) for b in blocks]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", BACKBONES)
def test_taps_against_hooks(family):
    """Tap 0 is what enters block 0, taps 1..4 what leaves the tapped blocks; class token added, registers dropped."""
    network = FeatureNetwork(make(family))
    features = None

    def run():
        nonlocal features
        features = network(images())

    seen = hooked(network.backbone, run)
    expected = [seen[0][0]] + [seen[block][1] for block in network.tap_blocks]
    assert len(features) == network.num_taps == 5
    assert network.num_patches == 16
    prefix = PREFIX.get(family, 1)
    for tap, tokens in zip(features, expected):
        assert tap.shape == (2, network.width, network.num_patches)
        assert tokens.shape == (2, prefix + 16, WIDTH)
        for n in range(16):
            torch.testing.assert_close(tap[:, :, n], tokens[:, prefix + n] + tokens[:, 0])


@pytest.mark.parametrize(
    ("layers", "blocks"), [(4, (0, 1, 2, 3)), (6, (0, 2, 3, 5)), (12, (2, 5, 8, 11)), (24, (5, 11, 17, 23))]
)
def test_taps_are_spread_evenly(layers, blocks):
    """The four blocks end at the last one, in equal strides where the depth allows."""
    assert FeatureNetwork(make("dinov2", layers)).tap_blocks == blocks


def test_too_shallow_networks_are_refused():
    """Three blocks cannot give four taps."""
    with pytest.raises(ValueError, match="has 3 blocks; give one with at least 4"):
        FeatureNetwork(make("dinov2", 3))


@pytest.mark.parametrize("family", BACKBONES)
def test_raster_order(family):
    """Changing the pixels of the patch in row 1, column 2 changes token 1 * 4 + 2 of tap 0, and no other."""
    network = FeatureNetwork(make(family))
    x = images()
    changed = x.clone()
    changed[:, :, 8:16, 16:24] = 1 - changed[:, :, 8:16, 16:24]
    difference = (network(changed)[0] - network(x)[0]).abs().amax((0, 1))
    assert difference[6] > 1e-2
    assert difference.sum() == difference[6]


@pytest.mark.parametrize("family", BACKBONES)
def test_other_input_sizes_interpolate_positions(family):
    """At 48 pixels there are 6 x 6 tokens, whose positions vary smoothly: a black image shows them alone."""
    backbone = make(family)
    network = FeatureNetwork(backbone, input_size=48)
    features = network(images(side=48))
    assert network.num_patches == 36
    assert all(tap.shape == (2, WIDTH, 36) for tap in features)
    if family == "dinov3_vit":  # rotates queries and keys instead of adding an embedding
        return
    ramp = torch.arange(4.0)  # make the position embedding the row index, in all channels
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "position_embedding" in name:
                parameter.zero_().view(-1, WIDTH)[1:] += ramp.repeat_interleave(4)[:, None]
            elif "patch_embedding" in name or "cls_token" in name or "class_embedding" in name:
                parameter.zero_()
    if family == "clip_vision_model":
        backbone.pre_layrnorm = torch.nn.Identity()
    rows = network(images(side=48))[0][0, 0].view(6, 6)
    assert (rows.amax(1) - rows.amin(1)).max() < 1e-5  # the same along a row
    assert (rows[1:] - rows[:-1]).mean() == pytest.approx((3 / 6) * 4 / 3, abs=0.15)  # 4 rows stretched to 6
    torch.testing.assert_close(rows.mean(), ramp.mean(), atol=0.05, rtol=0)


def test_input_size_must_fit_the_patches():
    """Off the patch grid: an error that names the nearest size that works."""
    with pytest.raises(ValueError, match=r"input_size 50 .* patch size 8; the nearest valid size is 48"):
        FeatureNetwork(make("dinov2"), input_size=50)
    with pytest.raises(ValueError, match="nearest valid size is 8"):
        FeatureNetwork(make("dinov2"), input_size=0)


def test_default_input_size():
    """224 for networks trained at 224 or more, the network's own size below."""
    assert FeatureNetwork(make("dinov2")).input_size == SIDE
    config = Dinov2Config(**{**options(), "image_size": 518, "patch_size": 14})
    assert FeatureNetwork(Dinov2Model(config)).input_size == 224


def test_frozen_and_always_in_eval_mode():
    """Gradients reach the images and no parameter, and `train()` of a parent switches nothing on."""
    config = Dinov2Config(**options(), hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, drop_path_rate=0.5)
    network = FeatureNetwork(Dinov2Model(config))
    torch.nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    x = images().requires_grad_()
    features = network(x)
    for a, b in zip(features, network(x)):
        assert torch.equal(a, b)  # no dropout
    sum(tap.square().sum() for tap in features).backward()
    assert (x.grad != 0).all()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("family", BACKBONES)
def test_from_pretrained_restores_the_network(family, tmp_path):
    """Saved by itself and loaded again: equal features, default statistics of the family."""
    backbone = make(family)
    backbone.save_pretrained(tmp_path)
    network = FeatureNetwork.from_pretrained(str(tmp_path))
    mean = OPENAI_CLIP_MEAN if family == "clip_vision_model" else IMAGENET_DEFAULT_MEAN
    assert network.mean.tolist() == pytest.approx(list(mean))
    std = network.std.tolist()
    for a, b in zip(network(images()), FeatureNetwork(backbone, mean=list(mean), std=std)(images())):
        assert torch.equal(a, b)


def test_from_pretrained_takes_the_vision_tower_of_a_whole_clip(tmp_path):
    """A full CLIPModel gives the features of its vision tower, normalized by CLIP's own statistics."""
    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=clip_vision_config().to_dict()))
    clip.save_pretrained(tmp_path)
    network = FeatureNetwork.from_pretrained(tmp_path)
    reference = FeatureNetwork(clip.vision_model, mean=list(OPENAI_CLIP_MEAN), std=list(OPENAI_CLIP_STD))
    for a, b in zip(network(images()), reference(images())):
        assert torch.equal(a, b)


def test_statistics_come_from_the_image_processor(tmp_path):
    """A repository's preprocessor config wins over the family's default, and the images are normalized by it."""
    backbone = make("vit")
    backbone.save_pretrained(tmp_path)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    network = FeatureNetwork.from_pretrained(tmp_path)
    assert network.mean.tolist() == pytest.approx([0.5, 0.4, 0.3])
    pixels = (images() - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    tokens = backbone.eval()(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(network(images())[-1], (tokens[:, 1:] + tokens[:, :1]).transpose(1, 2))


def test_dtype_of_the_weights(tmp_path):
    """Weights are float32 whatever the file holds, or the dtype asked for; float32 images are taken in both."""
    make("dinov2").bfloat16().save_pretrained(tmp_path)
    assert FeatureNetwork.from_pretrained(tmp_path)(images())[-1].dtype == torch.float32
    assert FeatureNetwork.from_pretrained(tmp_path, dtype=torch.bfloat16)(images())[-1].dtype == torch.bfloat16


def test_unsupported_types_are_refused(tmp_path):
    """A model type without class token and patches in our sense: an error that lists the supported ones."""
    CLIPTextConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'clip_text_model'; supported are dinov2, .*, vit, clip"):
        FeatureNetwork.from_pretrained(tmp_path)


def test_incomplete_checkpoints_are_refused(tmp_path):
    """A checkpoint without block 3 would leave it random for the whole training: an error names the weights."""
    make("vit").save_pretrained(
        tmp_path, state_dict={k: v for k, v in make("vit").state_dict().items() if ".3." not in k}
    )
    with pytest.raises(ValueError, match=r"model\.safetensors lacks the weights layers\.3.* and \d+ more of ViTModel"):
        FeatureNetwork.from_pretrained(tmp_path)
