"""Base class of the pipeline mixins for type checkers. At run time it is `object`."""

# pyright: reportPrivateImportUsage=false

from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline

if TYPE_CHECKING:

    class StockPipeline(DiffusionPipeline):
        """Attributes that the stock pipelines of all families have."""

        unet: Any
        transformer: Any
        vae: Any
        scheduler: Any
        vae_scale_factor: int
        prepare_latents: Any
        load_lora_weights: Any

else:
    StockPipeline = object
