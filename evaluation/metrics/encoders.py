"""The frozen encoders of the metrics: Inception, DINOv2, CLIP and the tiny world's evaluator.

An encoder maps a list of PIL images to float32 features `(B, D)` on the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Model,
)

from discriminator.pretrained import move
from evaluation.errors import EvaluationError, explain_unavailable
from evaluation.metrics.figures import Evaluator, pooled

Encoder = Callable[[list[Image.Image]], Tensor]

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
DINOV2 = "facebook/dinov2-large"
CLIP = "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
DINOV2_ADVICE = (
    "Give a Hub id or a folder with config.json and model.safetensors, leave out fd_dinov2, prdc and diversity "
    "(--metrics), or use the tiny world's evaluator with --evaluator."
)
CLIP_ADVICE = (
    "Give a Hub id or a folder with config.json, model.safetensors and tokenizer.json, leave out clip_score "
    "(--metrics), or use the tiny world's evaluator with --evaluator."
)
EVALUATOR_ADVICE = "Give the folder evaluator/ that `python -m examples.tiny.build` writes."
DINOV2_SIZE = 224  # Stein et al. 2023 (2306.04675)


def to_bytes(images: list[Image.Image]) -> Tensor:
    """Convert images of one size to a uint8 tensor `(B, 3, H, W)`."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


class InceptionEncoder:
    """The Inception-v3 of Heusel et al. 2017 in torch-fidelity's port, with 2,048 pooled features.

    Args:
        weights: weight file of torch-fidelity; None uses its cache or downloads the file.
        device: device to run on.

    Raises:
        EvaluationError: torch-fidelity or the weights are missing; the message says what to install or provide.
    """

    def __init__(self, weights: Path | None, device: str):
        if weights is not None:
            _check_weights(weights)
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            model = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights) if weights else None)
        except ModuleNotFoundError as error:
            raise EvaluationError(
                "fid needs torch-fidelity: run `pip install torch-fidelity` (with the torchvision for your torch), "
                "leave fid out of --metrics, or use --evaluator."
            ) from error
        except (OSError, RuntimeError) as error:
            raise EvaluationError(
                f"fid: the weights of Inception cannot be loaded ({error}). Give --inception_weights with the file "
                f"{INCEPTION_URL}, leave fid out of --metrics, or use --evaluator."
            ) from error
        self.model = model.to(device).requires_grad_(False)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> Tensor:
        """Features `(B, 2048)`; the network resizes to 299 pixels like TensorFlow's original."""
        return self.model(to_bytes(images).to(self.device)).float().cpu()


def _check_weights(path: Path) -> None:
    """Check that the file only contains tensors, because torch-fidelity would unpickle anything."""
    if not path.is_file():
        raise EvaluationError(f"--inception_weights {path}: there is no such file; download {INCEPTION_URL}.")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many types of errors
        raise EvaluationError(f"--inception_weights {path}: not a file of tensors ({error}).") from error


class Dinov2Encoder:
    """DINOv2's class token after the last LayerNorm, at 224 pixels (bicubic), as in Stein et al. 2023.

    Args:
        model_id: Hub id or folder of a Dinov2Model.
        device: device to run on.

    Raises:
        EvaluationError: the model cannot be loaded.
    """

    def __init__(self, model_id: str, device: str):
        try:
            self.model = move(Dinov2Model.from_pretrained(model_id), device).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise _cannot_load("dino_model", model_id, error, DINOV2_ADVICE) from error
        size = min(DINOV2_SIZE, self.model.config.image_size)
        self.processor = CLIPImageProcessor(
            size={"height": size, "width": size},
            do_center_crop=False,
            image_mean=[0.485, 0.456, 0.406],  # those of ImageNet, which DINOv2 was trained with
            image_std=[0.229, 0.224, 0.225],
        )

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> Tensor:
        """Features `(B, D)`."""
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return self.model(pixels.to(self.model.device)).pooler_output.float().cpu()


class ClipEncoder:
    """A CLIP, or a reward model with the same layout (PickScore): embeddings of images and texts in one space.

    Args:
        model_id: Hub id or folder of a CLIPModel.
        device: device to run on.
        processor_id: Hub id or folder of tokenizer and image processor, if they are not with the model.
        flag: flag that names the model, for the error message.
        advice: sentence for the error message that says how to fix it.

    Raises:
        EvaluationError: the model cannot be loaded.
    """

    def __init__(
        self, model_id: str, device: str, processor_id: str | None = None, flag: str = "clip_model",
        advice: str = CLIP_ADVICE,
    ):  # fmt: skip
        try:
            self.model = move(CLIPModel.from_pretrained(model_id), device).eval().requires_grad_(False)
            self.tokenizer = AutoTokenizer.from_pretrained(processor_id or model_id)
        except (OSError, ValueError) as error:
            raise _cannot_load(flag, model_id, error, advice) from error
        config = cast(CLIPConfig, self.model.config)
        self.max_length = cast(CLIPTextConfig, config.text_config).max_position_embeddings
        size = cast(CLIPVisionConfig, config.vision_config).image_size
        try:
            self.processor = CLIPImageProcessor.from_pretrained(processor_id or model_id)
        except OSError:  # not saved with the weights; all CLIP models use the default mean and std
            self.processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> Tensor:
        """Embeddings of images `(B, D)`, not normalized."""
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return pooled(self.model.get_image_features(pixels.to(self.model.device))).float().cpu()

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Embeddings of texts `(B, D)`, not normalized; long texts are truncated."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        tokens.pop("token_type_ids", None)
        return pooled(self.model.get_text_features(**tokens)).float().cpu()


class EvaluatorEncoder:
    """The tiny world's evaluator, which replaces Inception and DINOv2: features, and logits of the image's class.

    `__call__` returns both concatenated, `(B, D + K)`, so that each image is encoded once; `split` separates them.
    """

    def __init__(self, path: str, device: str):
        try:
            self.evaluator = Evaluator.from_pretrained(path).to(device)
        except (OSError, ValueError) as error:
            raise _cannot_load("evaluator", path, error, EVALUATOR_ADVICE) from error
        self.labels = self.evaluator.label_ids

    def __call__(self, images: list[Image.Image]) -> Tensor:
        """Features and logits `(B, D + K)`."""
        pixels = to_bytes(images).to(self.evaluator.image_mean.device).float() / 255
        return torch.cat(self.evaluator(pixels), dim=1).cpu()

    def split(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(N, D)` and logits `(N, K)`."""
        return seen[:, : -len(self.labels)], seen[:, -len(self.labels) :]


def _cannot_load(flag: str, value: str, error: Exception, advice: str) -> EvaluationError:
    return EvaluationError(f"--{flag} {value}: {explain_unavailable(value, error)}. {advice}")
