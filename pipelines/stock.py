"""What the mixins are mixed into, for type checkers only: at run time they have no base class of their own."""

# pyright: reportPrivateImportUsage=false

from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline

if TYPE_CHECKING:

    class StockPipeline(DiffusionPipeline):
        """What the stock pipelines of all families have."""

        unet: Any
        transformer: Any
        vae: Any
        scheduler: Any
        vae_scale_factor: int
        prepare_latents: Any
        load_lora_weights: Any

else:
    StockPipeline = object
