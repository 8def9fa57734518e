"""The tiny world's networks: the real architectures of Stable Diffusion, CLIP and DINOv2, only smaller.

Every function returns an untrained model of a stock diffusers or transformers class, so whatever loads the
originals loads these. Images are `(B, 3, 32, 32)`, latents `(B, 4, 8, 8)`. `examples.tiny.build` trains
them on real data; tests use them as they are.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Lowercase
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

PredictionType: TypeAlias = Literal["epsilon", "sample", "v_prediction"]  # as diffusers annotates it
IMAGE_SIZE = 32  # pixels
LATENT_SIZE = 8  # IMAGE_SIZE / 4: the tiny autoencoder halves twice, Stable Diffusion's three times
LATENT_CHANNELS = 4
TEXT_WIDTH = 64
TEXT_WIDTH_2 = 96  # of the SDXL layout's second encoder, wider as there (1280 beside 768)
TIME_EMBED_DIM = 16  # of each of SDXL's six numbers on size and crop; 256 there
# The usual 0.02 suits a width of 768; this narrow, a transformer's attention would stay uniform for hundreds of steps.
INITIALIZER_RANGE = 0.14
MAX_TOKENS = 24  # CLIP has 77; the captions of the tiny world are a few words, and padding costs attention


def make_tokenizer(
    captions: Iterable[str], vocab_size: int = 600, pad_token: str | None = None, max_tokens: int = MAX_TOKENS
) -> CLIPTokenizer:
    """Train CLIP's byte-pair tokenizer on `captions`. Returns a stock `CLIPTokenizer` that cuts at `max_tokens`.

    CLIP's conventions are kept: lower case, `</w>` at the end of a word, the end token has the largest id and pads,
    unless another `pad_token` does: SDXL's second tokenizer pads with "!".
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The whole byte alphabet goes in, plain and word-final, so that no caption can meet an unknown character; as
    # special tokens, because the trainer numbers what it meets in the captions in random order.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + 2 * len(alphabet),
        special_tokens=alphabet + [char + "</w>" for char in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocab = tokenizer.get_vocab()
    vocab[start], vocab[end] = len(vocab), len(vocab) + 1
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(m) for m in merges]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens, pad_token=pad_token or end)


def make_clip(
    tokenizer: CLIPTokenizer, width: int = TEXT_WIDTH, layers: int = 2, image_size: int = IMAGE_SIZE
) -> CLIPModel:
    """A whole CLIP (text and vision towers). Its text tower becomes the pipeline's text encoder."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        initializer_range=INITIALIZER_RANGE,
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        image_size=image_size,
        patch_size=8,
        projection_dim=width,
        initializer_range=INITIALIZER_RANGE,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width))


def make_t5_tokenizer(captions: Iterable[str], vocab_size: int = 200) -> T5TokenizerFast:
    """Train T5's unigram tokenizer on `captions`. Returns a stock `T5TokenizerFast`."""
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    return T5TokenizerFast(vocab=[(token, score) for token, score in vocab], extra_ids=0)


def make_t5(tokenizer: T5TokenizerFast, width: int = TEXT_WIDTH, layers: int = 2) -> T5EncoderModel:
    """T5's encoder, the third text encoder of Stable Diffusion 3's layout."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 2,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def make_vae(
    channels: tuple[int, ...] = (16, 16, 32),
    latent_channels: int = LATENT_CHANNELS,
    image_size: int = IMAGE_SIZE,
    norm_num_groups: int = 8,
    **config,
) -> AutoencoderKL:
    """KL autoencoder, images `(B, 3, 32, 32)` in [-1, 1] to latents `(B, 4, 8, 8)` by default.

    Each of `channels` but the last halves the image once; `config` adds to the config.
    """
    levels: dict[str, Any] = {  # diffusers annotates each as a tuple of one
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    }
    return AutoencoderKL(
        **levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        sample_size=image_size,
        **config,
    )


def make_sd3_vae(channels: tuple[int, ...] = (16, 16, 32)) -> AutoencoderKL:
    """The autoencoder in Stable Diffusion 3's layout: latents of 16 channels with a shift, no convolutions around."""
    return make_vae(
        channels,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_sd3_transformer(
    text_width: int = TEXT_WIDTH, pooled_width: int = TEXT_WIDTH + TEXT_WIDTH_2, layers: int = 2, **config
) -> SD3Transformer2DModel:
    """The transformer of Stable Diffusion 3.5 medium's layout: its first block attends to the image twice.

    Latents `(B, 16, 8, 8)` are cut into 2x2 patches. It reads tokens of `text_width` and a pooled text of
    `pooled_width`; `config` adds to its config.
    """
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text_width,
        caption_projection_dim=32,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        **config,
    )


def make_flow_scheduler(shift: float = 3.0) -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's own scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def make_unet(
    channels: tuple[int, int] = (32, 64),
    cross_attention_dim: int = TEXT_WIDTH,
    latent_channels: int = LATENT_CHANNELS,
    attention: tuple[bool, bool] = (False, True),
    **config,
) -> UNet2DConditionModel:
    """The text-conditional UNet in Stable Diffusion's layout, latents `(B, 4, 8, 8)`; `config` adds to its config.

    `attention` says which of the two levels attend to the text.

    Attention sits at the 4x4 level only: on a CPU it costs more than the convolutions and at 8x8 adds little.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=2,
        norm_num_groups=16 if channels[0] % 16 == 0 else 8,
        **config,
    )


def make_sdxl_unet(
    channels: tuple[int, int] = (32, 64), text_widths: tuple[int, int] = (TEXT_WIDTH, TEXT_WIDTH_2), **config
) -> UNet2DConditionModel:
    """The same in SDXL's layout.

    Cross-attention reads both encoders' tokens side by side; beside the timestep, the UNet is told the second
    encoder's pooled text `(B, text_widths[1])` and six numbers `(B, 6)`: original size, top left corner of the crop and
    target size, in pixels.
    """
    return make_unet(
        channels,
        cross_attention_dim=sum(text_widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBED_DIM,
        projection_class_embeddings_input_dim=text_widths[1] + 6 * TIME_EMBED_DIM,
        use_linear_projection=True,
        **config,
    )


def make_scheduler(prediction_type: PredictionType = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's own noise schedule (`scaled_linear` 0.00085..0.012)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",  # so that the teacher's one step starts from noise, as its student's does
        prediction_type=prediction_type,
    )


def dinov2_config(
    width: int = 64, layers: int = 4, patch_size: int = 4, image_size: int = IMAGE_SIZE, **kwargs
) -> Dinov2Config:
    """A vision transformer in DINOv2's layout: square patches and a class token."""
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        mlp_ratio=4,
        image_size=image_size,
        patch_size=patch_size,
        initializer_range=INITIALIZER_RANGE,
        **kwargs,
    )


def make_dinov2(width: int = 64, layers: int = 4, patch_size: int = 4, image_size: int = IMAGE_SIZE) -> Dinov2Model:
    """Backbone only, as `facebook/dinov2-small` is."""
    return Dinov2Model(dinov2_config(width, layers, patch_size, image_size))


def make_classifier(
    labels: list[str], width: int = 64, layers: int = 4, patch_size: int = 8, image_size: int = IMAGE_SIZE
) -> Dinov2ForImageClassification:
    """Backbone with a linear head: the evaluator, whose features serve the Frechet distance and whose labels the
    agreement of image and caption."""
    ids = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return Dinov2ForImageClassification(dinov2_config(width, layers, patch_size, image_size, **ids))


def make_residual_classifier(
    labels: list[str], widths: tuple[int, ...] = (32, 64, 128), image_size: int = IMAGE_SIZE
) -> ResNetForImageClassification:
    """A residual network with a linear head, images `(B, 3, H, H)`: one block of each of `widths` channels.

    Convolutions learn shapes from a thousand images, which a transformer this small does not.
    """
    more: dict[str, Any] = {"image_size": image_size}  # not a parameter of ResNet's; the evaluator reads it
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=widths[0],
            hidden_sizes=list(widths),
            depths=[1] * len(widths),
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            **more,
        )
    )
