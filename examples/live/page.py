"""The web page, and the object that generates its images."""

import random
import threading
import time
from typing import Any

import gradio
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from pipelines import spread_timesteps
from training.models.calling import call_pipeline

SIDE = 512  # pixels on the screen
FIRST_CAPTION = "a handwritten seven"
MAX_SEED = 2**31 - 1


class Drawer:
    """Generates images with a student, one at a time, because the scheduler of a pipeline has state."""

    def __init__(self, pipe: DiffusionPipeline):
        self._pipe, self._lock = pipe, threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    @property
    def max_steps(self) -> int:
        """Maximum number of steps, the number of the student's timesteps."""
        return len(self._pipe.student_timesteps)

    def choose_timesteps(self, steps: int, change: int) -> list[int]:
        """Timesteps for image-to-image, descending: at most `steps` of the `change` smallest student timesteps."""
        known = sorted(self._pipe.student_timesteps)[:change]
        return spread_timesteps(known, min(steps, len(known)))

    def __call__(
        self, caption: str, steps: int, seed: int, source: Image.Image | None = None, change: int = 2
    ) -> tuple[Image.Image, str]:
        """Generate an image.

        Args:
            caption: prompt for the image.
            steps: number of steps, from 1 to `max_steps`.
            seed: seed of the noise.
            source: image to start from; None starts from noise.
            change: number of student timesteps, from the smallest on, that may be used to change `source`.

        Returns:
            The image, enlarged without smoothing if it is small, and a line with the number of steps and the time.
        """
        generator = torch.Generator().manual_seed(int(seed or 0))  # None if the field is empty
        arguments: dict[str, Any] = {"num_inference_steps": int(steps)}
        if source is not None:
            timesteps = self.choose_timesteps(int(steps), int(change))
            # The first timestep determines how much noise is added, so all steps are used.
            arguments = {"timesteps": timesteps, "strength": 1.0, "image": self._fit(source)}
        start = time.perf_counter()
        with self._lock:
            image = call_pipeline(self._pipe, caption or "", generator=generator, **arguments).images[0]
        took = time.perf_counter() - start
        count = len(arguments.get("timesteps", range(int(steps))))
        scale = max(1, SIDE // max(image.size))
        image = image.resize([scale * side for side in image.size], Image.Resampling.NEAREST)
        return image, f"{count} step{'s' * (count > 1)}, {1e3 * took:.0f} ms"

    def _fit(self, source: Image.Image) -> Image.Image:
        """The middle of `source` at the size that the student was trained at."""
        network = getattr(self._pipe, "unet", None) or self._pipe.transformer
        latent = network.config.sample_size
        height, width = (latent, latent) if isinstance(latent, int) else latent
        factor = self._pipe.vae_scale_factor
        return ImageOps.fit(source.convert("RGB"), (width * factor, height * factor), Image.Resampling.LANCZOS)


def draw_seed() -> int:
    """Draw a random seed."""
    return random.randint(0, MAX_SEED)


def make_page(drawer: Drawer) -> gradio.Blocks:
    """Make the page with caption, steps, seed and an image to start from. Each change generates a new image."""
    with gradio.Blocks(title="ADD, live", analytics_enabled=False) as page:
        gradio.Markdown("## Type, and the picture follows")
        with gradio.Row():
            with gradio.Column():
                caption = gradio.Textbox(FIRST_CAPTION, label="Caption", elem_id="caption", autofocus=True)
                steps = gradio.Slider(1, drawer.max_steps, value=1, step=1, label="Steps", elem_id="steps")
                with gradio.Row(equal_height=True):
                    seed = gradio.Number(
                        0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed", scale=3
                    )
                    again = gradio.Button("Random seed", elem_id="random", scale=1)
                with gradio.Accordion("Start from a picture", open=False, elem_id="from_picture"):
                    source = gradio.Image(
                        label="Picture to start from", type="pil", sources=["upload", "clipboard"], elem_id="source"
                    )
                    change = gradio.Slider(
                        1, drawer.max_steps, value=min(2, drawer.max_steps), step=1, label="Change",
                        info="How much of the picture may change; the most keeps almost nothing.", elem_id="change",
                    )  # fmt: skip
                took = gradio.Markdown(elem_id="took")
            picture = gradio.Image(label="Picture", elem_id="picture", format="png", interactive=False)
        again.click(draw_seed, outputs=[seed], show_progress="hidden", api_name="seed")
        gradio.on(
            [caption.change, steps.change, seed.change, source.change, change.change, page.load],
            drawer,
            inputs=[caption, steps, seed, source, change],
            outputs=[picture, took],
            show_progress="hidden",  # it would only flicker
            trigger_mode="always_last",  # of several changes during a call, only the last one starts a new call
            api_name="draw",
        )
    return page
