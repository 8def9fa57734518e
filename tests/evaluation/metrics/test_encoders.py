"""Encoders in the originals' layouts, small and random, against the libraries' own way to the same numbers."""

import importlib.util
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer, Dinov2Model

from evaluation import metrics
from evaluation.errors import EvaluationError
from evaluation.metrics.encoders import ClipEncoder, Dinov2Encoder, EvaluatorEncoder, InceptionEncoder, to_bytes
from examples.tiny import models

has_torch_fidelity = importlib.util.find_spec("torch_fidelity") is not None
GENERATOR = np.random.default_rng(0)
IMAGES = [Image.fromarray(GENERATOR.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
TEXTS = ["a handwritten one", "a handwritten two", "a handwritten seven"]


def test_clip_score_is_the_models_own_similarity(world):
    """CLIP's forward gives logits of cosine times a scale: without the scale and on the diagonal, the score."""
    encoder = ClipEncoder(str(world / "clip"), "cpu")
    model, tokenizer = CLIPModel.from_pretrained(world / "clip"), CLIPTokenizer.from_pretrained(world / "clip")
    inputs = CLIPProcessor(encoder.processor, tokenizer)(text=TEXTS, images=IMAGES, return_tensors="pt", padding=True)
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
    ours = metrics.clip_score(encoder(IMAGES), encoder.texts(TEXTS))
    assert ours == pytest.approx(cosines.diagonal().mean().item(), abs=1e-5)
    assert abs(ours - cosines.mean().item()) > 1e-4  # another pairing is another score


def test_a_prompt_that_is_too_long_is_cut(world):
    encoder = ClipEncoder(str(world / "clip"), "cpu")
    long = encoder.texts(["one " * 200, "one " * 300])
    torch.testing.assert_close(long[0], long[1])


def test_dinov2_is_the_class_token_of_normalized_pixels(world):
    encoder = Dinov2Encoder(str(world / "feature_network"), "cpu")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (to_bytes(IMAGES) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(world / "feature_network")(pixels).pooler_output
    torch.testing.assert_close(encoder(IMAGES), expected, atol=1e-5, rtol=1e-5)


def test_dinov2_sees_every_size_at_its_own(world):
    """Wide images are squeezed and not cropped, as Stein et al. measure."""
    encoder = Dinov2Encoder(str(world / "feature_network"), "cpu")
    wide = [image.resize((96, 64)) for image in IMAGES]
    squeezed = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in wide]
    torch.testing.assert_close(encoder(wide), encoder(squeezed), atol=1e-4, rtol=1e-4)


def test_stand_in_parts_features_and_logits(tmp_path):
    models.make_classifier(["one", "two"], width=32, layers=1).save_pretrained(tmp_path)
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    stand_in = EvaluatorEncoder(str(tmp_path), "cpu")
    features, logits = stand_in.split(stand_in(IMAGES))
    expected = metrics.Evaluator.from_pretrained(str(tmp_path))(to_bytes(IMAGES) / 255)
    torch.testing.assert_close((features, logits), expected)
    assert stand_in.labels == {"one": 0, "two": 1}


@pytest.mark.parametrize(
    ("load", "flag", "file"),
    [
        (lambda path: ClipEncoder(path, "cpu"), "--clip_model", "tokenizer.json"),
        (lambda path: ClipEncoder(path, "cpu", flag="model"), "--model", "tokenizer.json"),
        (lambda path: Dinov2Encoder(path, "cpu"), "--dino_model", "model.safetensors"),
        (lambda path: EvaluatorEncoder(path, "cpu"), "--evaluator", "examples.tiny.build"),
    ],
)
def test_what_cannot_be_had_is_named_with_its_files(tmp_path, load, flag, file):
    with pytest.raises(EvaluationError, match=f"{flag} .*{file}"):
        load(str(tmp_path))


def test_inception_weights_are_tensors_or_refused(tmp_path):
    """A file that would run code when unpickled is refused before torch-fidelity sees it."""
    with pytest.raises(EvaluationError, match=r"there is no such file; download https://.*inception"):
        InceptionEncoder(tmp_path / "absent.pth", "cpu")
    torch.save({"weights": Planted(tmp_path)}, tmp_path / "planted.pth")
    with pytest.raises(EvaluationError, match="not a file of tensors"):
        InceptionEncoder(tmp_path / "planted.pth", "cpu")
    assert not (tmp_path / "executed").exists()


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "executed"),)


@pytest.mark.skipif(has_torch_fidelity, reason="torch-fidelity is installed")
def test_without_torch_fidelity_the_message_says_what_to_do():
    with pytest.raises(EvaluationError, match=r"pip install torch-fidelity.*fid out of --metrics"):
        InceptionEncoder(None, "cpu")


@pytest.mark.skipif(not has_torch_fidelity, reason="needs torch-fidelity, which needs the torchvision of this torch")
def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """Random weights in a file of the published layout: the features of torch-fidelity's own network."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with monkeypatch.context() as patch:  # the constructor loads weights; here it keeps the random ones
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = theirs.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    images = [image.resize((299, 299)) for image in IMAGES[:2]]
    features = InceptionEncoder(tmp_path / "inception.pth", "cpu")(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, network(to_bytes(images))[0], atol=1e-4, rtol=1e-3)
