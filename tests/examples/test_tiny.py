"""The tiny world: what it says about images is true, and what it writes loads anywhere."""

import json

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2ForImageClassification,
    Dinov2Model,
)

from evaluation.tiny.split import read_split
from examples.tiny import data, images
from examples.tiny.autoencoder import center_latents, encode_moments
from examples.tiny.clip import contrastive_loss
from examples.tiny.loop import fit
from examples.tiny.models import make_vae
from examples.tiny.teacher import train_teacher

# --- captions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3.5])
def test_stroke_width_of_a_long_bar_is_its_width(width):
    """Area L*w over an edge of 2L; the bar's two ends vanish with its length."""
    ink = np.zeros((4000, 8))
    ink[:, 2 : 2 + int(width)] = 1
    ink[:, 2 + int(width)] = width % 1
    assert data.stroke_width(ink) == pytest.approx(width, rel=2e-3)


@pytest.mark.parametrize("shear", [-1, 0, 1])
def test_slant_of_a_sheared_bar_is_the_angle_of_shear(shear):
    """Moving each row by `shear` pixels more than the one below leans the bar by arctan(shear)."""
    ink = np.stack([np.roll([1.0] * 3 + [0.0] * 37, 18 - shear * y) for y in range(16)])
    assert data.slant(ink) == pytest.approx(np.degrees(np.arctan(shear)))


def test_captions_follow_the_measurements():
    """Among scans of one digit, bold ones are wider than plain ones than thin ones, a third each; likewise the lean."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    ink, everything = scans.images / 16, np.arange(len(scans.images))
    captions = np.array(data.caption_digits(ink, scans.target, everything))
    sevens = scans.target == 7
    words = [set(caption.split()) for caption in captions[sevens]]
    assert all({"a", "handwritten", "seven"} <= w for w in words)
    for measure, low, high in ((data.stroke_width, "thin", "bold"), (data.slant, "left", "right")):
        values = np.array([measure(scan) for scan in ink[sevens]])
        rank = np.array([0 if low in w else 2 if high in w else 1 for w in words])
        assert values[rank == 0].max() < values[rank == 1].min()
        assert values[rank == 1].max() < values[rank == 2].min()
        assert np.bincount(rank).tolist() == pytest.approx([len(rank) / 3] * 3, abs=1)
    assert len(set(captions)) == 90


def test_digits_are_split_once_and_evenly():
    """1,297 + 500 different scans, ten digits each, in the same shares, another split for another seed."""
    train, test = data.load_digits(seed=0)
    names = [{example.label for example in half} for half in (train, test)]
    assert (len(train), len(test)) == (1297, 500)
    assert names == [set(data.DIGIT_NAMES)] * 2
    assert all(45 <= sum(e.label == name for e in test) <= 55 for name in data.DIGIT_NAMES)
    overlap = {e.image.tobytes() for e in train} & {e.image.tobytes() for e in test}
    assert not overlap
    assert [e.text for e in test] != [e.text for e in data.load_digits(seed=1)[1]]
    assert test[0].image.size == (32, 32)
    assert np.asarray(test[0].image)[:, 0].max() < 128, "paper is black, ink is white"


def test_any_caption_survives_the_image_folder(tmp_path):
    """Quotes, backslashes, other scripts and Unicode's line separators come back as they were, one row each."""
    captions = ['a "quoted" \\ line', "zażółć 七", "two\u2028lines\x85here", "a\nb"]
    image = Image.new("RGB", (32, 32))
    data.write_split(tmp_path / "half", [data.Example(image, caption, "x") for caption in captions])
    assert read_split(tmp_path / "half").captions == captions


# --- mathematics ----------------------------------------------------------------------------------


def test_contrastive_loss_is_clips_for_distinct_captions():
    """With no caption twice the targets are the identity."""
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    diagonal = torch.arange(6)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.tensor([3, 1, 4, 0, 5, 9])), expected)


def test_contrastive_loss_does_not_part_equal_captions():
    """Logits that tell the captions apart but not their copies are a minimum: the gradient vanishes."""
    ids = torch.tensor([0, 0, 1, 1, 1])
    logits = (100.0 * (ids[:, None] == ids[None])).requires_grad_()
    contrastive_loss(logits, ids).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(5, 5), atol=1e-6, rtol=0)


def test_blur_adds_the_variance_asked_for():
    """An impulse blurred by sigma is a bump of variance sigma^2 along each axis, and sigma 0 changes nothing."""
    impulse = torch.zeros(2, 3, 33, 33)
    impulse[:, :, 16, 16] = 1
    blurred = images.blur(impulse, torch.tensor([0.0, 1.2]).view(2, 1, 1, 1))
    torch.testing.assert_close(blurred[0], impulse[0])
    offsets = torch.arange(33.0) - 16
    for axis in (1, 2):
        variance = (blurred[1].sum(dim=axis) * offsets**2).sum(dim=1)
        torch.testing.assert_close(variance, torch.full((3,), 1.44), rtol=0.02, atol=0)


def test_warp_by_nothing_is_the_identity():
    """No rotation, no scale, no shift: the sampling grid falls on the pixels."""
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(images.warp(pixels, 0, 0, 0), pixels, atol=1e-4, rtol=1e-4)


def test_centred_latents_reconstruct_the_same():
    """The shift that brings each channel to mean 0 is undone inside the decoder."""
    torch.manual_seed(0)
    vae, pixels = make_vae((8, 8, 8)).eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before, (mean, std) = vae(pixels).sample, encode_moments(vae, pixels)
        center_latents(vae, pixels)
        torch.testing.assert_close(vae(pixels).sample, before, atol=1e-5, rtol=1e-5)
        centred, same_std = encode_moments(vae, pixels)
    torch.testing.assert_close(centred, mean - mean.mean(dim=(0, 2, 3), keepdim=True), atol=1e-5, rtol=1e-5)
    assert mean.mean(dim=(0, 2, 3)).abs().max() > 0.01
    torch.testing.assert_close(same_std, std)


def test_patches_are_in_the_order_of_the_vision_transformer():
    """A convolution with the patch embedding's stride sees the same patches in the same order."""
    pixels = torch.randn(2, 3, 32, 32)
    weight = torch.randn(5, 3, 4, 4)
    expected = F.conv2d(pixels, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(images.patchify(pixels, 4) @ weight.flatten(1).T, expected, atol=1e-4, rtol=1e-4)


def test_normalize_is_what_the_saved_preprocessor_does(tmp_path):
    """The preprocessor_config.json describes the images that the networks were trained on."""
    images.make_processor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    seen = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(images.normalize(pixels), torch.as_tensor(seen), atol=1e-5, rtol=1e-5)


def test_fit_minimizes_and_keeps_the_average():
    """A quadratic is solved; with a decay the weights left are EMAModel's average, which lags behind."""
    ends = {}
    for decay in (None, 0.9):
        point = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(point.weight, 1.0)
        fit(
            [point],
            lambda p=point: p.weight.square().sum(),
            iterations=60,
            learning_rate=0.1,
            title="",
            ema_decay=decay,
        )
        ends[decay] = point.weight.item()
    assert abs(ends[None]) < 0.05
    assert ends[0.9] != ends[None]


def test_fit_stops_at_a_loss_that_is_not_finite():
    """A diverged network must not be saved as a good one."""
    point = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="autoencoder: the loss is nan"):
        fit([point], lambda: point.weight.sum() * float("nan"), iterations=3, learning_rate=0.1, title="autoencoder")


# --- what is written ------------------------------------------------------------------------------


def test_image_folder_is_read_by_datasets(pristine, tmp_path):
    """`load_dataset("imagefolder")` sees the pictures, captions and labels of both halves."""
    loaded = datasets.load_dataset("imagefolder", data_dir=str(pristine / "data"), cache_dir=str(tmp_path))
    assert {half: len(rows) for half, rows in loaded.items()} == {"train": 24, "test": 6}
    ours = read_split(pristine / "data" / "test")
    assert loaded["test"]["text"][:] == ours.captions
    assert loaded["test"]["label"][:] == ours.labels
    first = torch.from_numpy(np.array(loaded["test"][0]["image"])).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(ours.pixels[0], first)


def test_text_encoder_is_the_trained_clips(pristine):
    """Stock classes load one CLIP folder whole, as text tower, and as the teacher's; the embedding is the same."""
    whole = CLIPModel.from_pretrained(pristine / "clip").eval()
    tower, info = CLIPTextModelWithProjection.from_pretrained(pristine / "clip", output_loading_info=True)
    assert not info["missing_keys"]
    tokenizer = CLIPTokenizer.from_pretrained(pristine / "clip")
    teacher = StableDiffusionPipeline.from_pretrained(pristine / "teacher")
    ids = tokenizer(["a red square", "zyx!"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = whole.get_text_features(ids).pooler_output
        torch.testing.assert_close(tower.eval()(ids).text_embeds, expected)
        torch.testing.assert_close(whole.text_projection(teacher.text_encoder(ids).pooler_output), expected)
    assert teacher.tokenizer(["a red square"]).input_ids == tokenizer(["a red square"]).input_ids


def test_teacher_draws_with_a_stock_pipeline(pristine):
    """Prompt to picture, and the latents that it diffuses have unit variance."""
    pipeline = StableDiffusionPipeline.from_pretrained(pristine / "teacher")
    assert pipeline.safety_checker is None
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    picture = pipeline("a red square", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    assert np.isfinite(picture).all()
    vae = AutoencoderKL.from_pretrained(pristine / "autoencoder")
    mean, std = encode_moments(vae, read_split(pristine / "data" / "train").pixels)
    latents = (mean + std * torch.randn_like(mean)) * pipeline.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.03)


def test_vision_networks_are_stock_and_apart(pristine):
    """F loads as Dinov2Model with its preprocessor, the evaluator as a classifier; no weight is shared."""
    features, info = Dinov2Model.from_pretrained(pristine / "feature_network", output_loading_info=True)
    assert not info["missing_keys"]
    evaluator = Dinov2ForImageClassification.from_pretrained(pristine / "evaluator")
    assert list(evaluator.config.id2label.values()) == ["blue", "green", "red"]
    for name in ("feature_network", "evaluator"):
        config = json.loads((pristine / name / "preprocessor_config.json").read_text())
        assert config["image_mean"] == pytest.approx(images.IMAGENET_MEAN)
    ours, theirs = features.state_dict(), evaluator.dinov2.state_dict()
    assert not torch.equal(ours["embeddings.position_embeddings"], theirs["embeddings.position_embeddings"])


def test_v_prediction_teacher(pristine, tmp_path):
    """The scheduler that is published says what the UNet was trained to predict, and the UNet differs."""
    train = read_split(pristine / "data" / "train")
    weights = {}
    for kind in ("epsilon", "v_prediction"):
        torch.manual_seed(0)
        train_teacher(tmp_path / kind, [pristine / "clip"], pristine / "autoencoder", train, kind, iterations=2)
        pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / kind)
        assert pipeline.scheduler.config.prediction_type == kind
        weights[kind] = pipeline.unet.conv_out.weight
    assert not torch.equal(weights["epsilon"], weights["v_prediction"])
