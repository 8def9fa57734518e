"""Embeddings of captions and images, and how they are joined."""

import json

import pytest
import torch
from transformers import CLIPTextModel

from discriminator.conditioning import ImageCondition, TextCondition, projection_condition
from examples.tiny.models import make_clip, make_dinov2, make_tokenizer

CAPTIONS = ["a handwritten seven", "two", "a very small handwritten number three on paper"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CAPTIONS, vocab_size=40)


@pytest.fixture(scope="module")
def clip(tokenizer):
    torch.manual_seed(0)
    return make_clip(tokenizer, width=32, layers=1).eval()


@pytest.fixture(scope="module")
def text_condition(clip, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return TextCondition.from_pretrained(directory)


def test_text_condition_is_clips_text_embedding(text_condition, clip, tokenizer):
    """Loaded from a whole CLIP: the projected embedding of the full model, padded to its length, at unit length."""
    c = text_condition(CAPTIONS)
    tokens = tokenizer(CAPTIONS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = clip.get_text_features(**tokens).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert c.shape == (3, text_condition.dim)
    torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-5)
    assert (c[0] - c[1]).abs().max() > 1e-2


def test_text_condition_does_not_depend_on_the_batch(text_condition):
    """A caption's embedding is the same alone and beside a longer one, which pads it."""
    torch.testing.assert_close(text_condition(CAPTIONS)[1:2], text_condition(CAPTIONS[1:2]), rtol=1e-4, atol=1e-5)


def test_long_and_empty_captions(text_condition):
    """Captions beyond the model's length are truncated, and the empty one, which dropout uses, has an embedding."""
    long = "a handwritten seven " * 30
    torch.testing.assert_close(text_condition([long]), text_condition([long + "two two"]))
    torch.testing.assert_close(text_condition(["", long]).norm(dim=1), torch.ones(2))


def test_text_condition_is_frozen_float32(text_condition):
    """No gradients, eval mode under `train()`, and float32 out of a bf16 model."""
    text_condition.train()
    assert not any(m.training for m in text_condition.modules())
    assert not text_condition(CAPTIONS).requires_grad
    assert all(not p.requires_grad for p in text_condition.parameters())
    half = TextCondition(make_clip_text_half(text_condition), text_condition.tokenizer)
    c = half(CAPTIONS)
    assert c.dtype == torch.float32
    torch.testing.assert_close(c, text_condition(CAPTIONS), rtol=0, atol=0.05)


def make_clip_text_half(condition):
    half = type(condition.model)(condition.model.config)
    half.load_state_dict(condition.model.state_dict())
    return half.bfloat16()


def test_text_encoder_without_projection_is_refused(clip, tokenizer, tmp_path):
    """Stable Diffusion's text encoder has no projection; a random one must not take its place."""
    CLIPTextModel(clip.config.text_config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors lacks the weights text_projection\.weight"):
        TextCondition.from_pretrained(tmp_path)


@pytest.mark.parametrize("in_text_config", [None, 512])
def test_projection_dim_is_that_of_the_whole_clip(tokenizer, tmp_path, in_text_config):
    """laion's CLIPs have it at the top level of the config only, or have the default 512 in the text config."""
    whole = make_clip(tokenizer, width=32, layers=1)
    assert whole.config.projection_dim != 512
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].pop("projection_dim")
    if in_text_config is not None:
        config["text_config"]["projection_dim"] = in_text_config
    (tmp_path / "config.json").write_text(json.dumps(config))
    condition = TextCondition.from_pretrained(tmp_path)
    assert condition.dim == whole.config.projection_dim
    with torch.no_grad():
        expected = (
            whole.eval().get_text_features(**tokenizer(CAPTIONS, padding=True, return_tensors="pt")).pooler_output
        )
    torch.testing.assert_close(condition(CAPTIONS), torch.nn.functional.normalize(expected, dim=-1))


def test_image_condition_is_the_class_token(tmp_path):
    """The pooled output of the stock model (class token after the LayerNorm) of the resized, normalized image."""
    torch.manual_seed(0)
    dinov2 = make_dinov2(32, 2).eval()
    dinov2.save_pretrained(tmp_path)
    condition = ImageCondition.from_pretrained(tmp_path)
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    c = condition(images)
    small = (images.reshape(3, 3, 32, 2, 32, 2).mean((3, 5)) + 1) / 2
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = dinov2((small - mean[:, None, None]) / std[:, None, None]).pooler_output
    torch.testing.assert_close(c, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert c.shape == (3, condition.dim)
    assert not c.requires_grad
    assert not condition.train().model.training
    assert condition(images.bfloat16()).dtype == torch.float32


def test_image_condition_refuses_clip(clip, tmp_path):
    """CLIP's class token is not a self-supervised embedding: refused, with the supported types."""
    clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'clip'; supported are dinov2, dinov2_with_registers, dinov3_vit, vit:"):
        ImageCondition.from_pretrained(tmp_path)


def test_image_condition_leaves_the_random_state_alone():
    """Resizing is deterministic: embedding an image must not consume random numbers of the training run."""
    condition = ImageCondition(make_dinov2(32, 1))
    state = torch.get_rng_state()
    condition(torch.zeros(1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), state)


def test_projection_condition():
    """Text and image side by side; the image part is zero where x0 is unknowable; either or both switched off."""
    text, image = torch.randn(3, 4), torch.randn(3, 5)
    known = torch.tensor([True, False, True])
    c = projection_condition(text, image, known)
    torch.testing.assert_close(c[:, :4], text)
    torch.testing.assert_close(c[[0, 2], 4:], image[[0, 2]])
    assert (c[1, 4:] == 0).all()
    assert image.abs().min() > 0  # the input is left as it was
    torch.testing.assert_close(projection_condition(text, image)[:, 4:], image)
    assert torch.equal(projection_condition(text, None, known), text)
    assert torch.equal(projection_condition(None, image), image)
    assert projection_condition(None, None) is None
