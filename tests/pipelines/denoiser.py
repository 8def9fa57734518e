"""Small UNets with the blocks of both families, trained for seconds to predict noise.

How bfloat16's rounding reaches the output is a matter of what a UNet has learnt: at the last timestep it mostly passes
its input on, through the outermost skip connections, while in an untrained one every layer counts alike.
"""

import copy

import torch
from diffusers import UNet2DConditionModel

from examples.tiny.models import make_scheduler

STEPS, BATCH = 80, 8


def make_unet(family) -> UNet2DConditionModel:
    """Four levels with attention in all but the innermost (Stable Diffusion), or three without it in the outermost."""
    torch.manual_seed(0)
    common = {"sample_size": 8, "norm_num_groups": 8, "attention_head_dim": 4, "layers_per_block": 1}
    if family.ours.__name__ == "ADDPipeline":
        return UNet2DConditionModel(block_out_channels=(16,) * 4, cross_attention_dim=family.embed_width, **common)
    config = family.components()["unet"].config
    added = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    return UNet2DConditionModel(
        block_out_channels=(16,) * 3,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=family.embed_width,
        use_linear_projection=True,
        **{name: config[name] for name in added},
        **common,
    )


@torch.enable_grad()
def train(family, unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Teach it the noise of smooth latents of unit variance, half of them at the last timestep, which is noise only."""
    generator = torch.Generator().manual_seed(1)
    alphas = make_scheduler().alphas_cumprod.sqrt()
    condition = random_condition(family, BATCH)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)
        z = torch.randn(BATCH, 4, 2, 2, generator=generator)
        z = torch.nn.functional.interpolate(z, size=(8, 8), mode="bicubic")
        eps = torch.randn(BATCH, 4, 8, 8, generator=generator)
        t = torch.randint(0, 1000, (BATCH,), generator=generator)
        t[::2] = 999
        alpha = torch.where(t == 999, 0, alphas[t]).reshape(-1, 1, 1, 1)
        x = alpha * z / z.std() + (1 - alpha**2).sqrt() * eps
        loss = (unet(x, t, **condition).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return unet.eval().requires_grad_(False)


def random_condition(family, batch: int, dtype: torch.dtype = torch.float32) -> dict:
    """The UNet's keyword arguments for `batch` samples."""
    embeds = {name: value.to(dtype) for name, value in family.embeds(batch).items()}
    condition = {"encoder_hidden_states": embeds["prompt_embeds"]}
    if "pooled_prompt_embeds" in embeds:
        ids = torch.tensor([[32, 32, 0, 0, 32, 32.0]]).repeat(batch, 1)
        condition["added_cond_kwargs"] = {"text_embeds": embeds["pooled_prompt_embeds"], "time_ids": ids}
    return condition


_trained: dict[str, UNet2DConditionModel] = {}


def trained_unet(family) -> UNet2DConditionModel:
    """A copy of the family's trained UNet, trained once in a process."""
    if family.stock_name not in _trained:
        _trained[family.stock_name] = train(family, make_unet(family))
    return copy.deepcopy(_trained[family.stock_name])
