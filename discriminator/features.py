"""The frozen feature network F of the discriminator (ADD, section 3.2 and Table 1a)."""

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from discriminator.backbones import FrozenModule, load_vit, position_kwargs, resolve_input_size
from discriminator.preprocess import normalize

NUM_BLOCK_TAPS = 4


class FeatureNetwork(FrozenModule):
    """A frozen vision transformer with features from five depths, the taps (StyleGAN-T, section 3.2).

    The taps are the input of block 0 (for CLIP after `pre_layrnorm`, where the residual stream begins) and the raw
    outputs, before any final LayerNorm, of four evenly spaced blocks up to the last one. Parameters do not require
    gradients and the module stays in eval mode; gradients flow to the images.

    Attributes:
        width: channels C of a tap.
        num_taps: K = 5.
        num_patches: tokens N of a tap.
        input_size: height and width of the input in pixels.
        tap_blocks: indices of the four tapped blocks, (2, 5, 8, 11) of 12.
    """

    mean: Tensor  # buffers, (3,)
    std: Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        input_size: int | None = None,
        mean: list[float] = IMAGENET_DEFAULT_MEAN,
        std: list[float] = IMAGENET_DEFAULT_STD,
    ):
        """Wrap `backbone`, a transformers vision transformer as `backbones.load_vit` returns it.

        Raises:
            ValueError: `input_size` is not a multiple of the patch size, or the backbone has fewer than four blocks.
        """
        super().__init__()
        config = backbone.config
        depth = config.num_hidden_layers
        if depth < NUM_BLOCK_TAPS:
            raise ValueError(f"the feature network has {depth} blocks; give one with at least {NUM_BLOCK_TAPS}")
        self.backbone = backbone.eval().requires_grad_(False)
        self.input_size = resolve_input_size(config, input_size)
        self.width = config.hidden_size
        self.num_taps = NUM_BLOCK_TAPS + 1
        self.num_patches = (self.input_size // config.patch_size) ** 2
        self.tap_blocks = tuple((k + 1) * depth // NUM_BLOCK_TAPS - 1 for k in range(NUM_BLOCK_TAPS))
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        input_size: int | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "FeatureNetwork":
        """Load from the Hub or a directory: DINOv2 (with or without registers), DINOv3, DINOv1 (`vit`) or CLIP.

        Args:
            name_or_path: Hub id, such as `facebook/dinov2-small`, or directory.
            input_size: pixels, a multiple of the patch size; by default 224, or the model's own size if smaller.
            revision: branch, tag or commit of the Hub repository.
            cache_dir: folder for downloads.
            dtype: dtype of the weights.

        Raises:
            ValueError: the model type is not supported, weights are missing, or `input_size` is not a multiple of the
                patch size.
        """
        backbone, mean, std = load_vit(name_or_path, revision=revision, cache_dir=cache_dir, dtype=dtype)
        return cls(backbone, input_size=input_size, mean=mean, std=std)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of `images` (B, 3, S, S) in [0, 1], S = `input_size`: K tensors (B, C, N), tokens in raster order.

        The class token is added to every patch token and then dropped, like register tokens.
        """
        config = self.backbone.config
        pixels = normalize(images, self.mean, self.std)
        hidden_states = self.backbone(pixels, output_hidden_states=True, **position_kwargs(config)).hidden_states
        first_patch = 1 + getattr(config, "num_register_tokens", 0)
        # hidden_states[0] is the embedding, hidden_states[i + 1] the output of block i.
        taps = [hidden_states[0]] + [hidden_states[block + 1] for block in self.tap_blocks]
        return tuple((tokens[:, first_patch:] + tokens[:, :1]).transpose(1, 2) for tokens in taps)
