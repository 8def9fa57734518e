"""The page and what draws for it."""

import threading
import time

import gradio
import torch
from diffusers import DiffusionPipeline
from PIL import Image

SIDE = 512  # pixels on the screen
FIRST_CAPTION = "a handwritten seven"


class Drawer:
    """Draws a caption with a student, one picture at a time: a pipeline's scheduler has state."""

    def __init__(self, pipe: DiffusionPipeline):
        self._pipe, self._lock = pipe, threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    @property
    def most_steps(self) -> int:
        """As many as the student has timesteps."""
        return len(self._pipe.student_timesteps)

    def __call__(self, caption: str, steps: int, seed: int) -> tuple[Image.Image, str]:
        """The picture, enlarged without smoothing where it is small, and how long it took."""
        generator = torch.Generator().manual_seed(int(seed or 0))  # a field that was cleared gives None
        start = time.perf_counter()
        with self._lock:
            image = self._pipe(caption or "", num_inference_steps=int(steps), generator=generator).images[0]
        took = time.perf_counter() - start
        scale = max(1, SIDE // max(image.size))
        image = image.resize([scale * side for side in image.size], Image.Resampling.NEAREST)
        return image, f"{steps} step{'s' * (steps > 1)}, {1e3 * took:.0f} ms"


def make_page(drawer: Drawer) -> gradio.Blocks:
    """Caption, steps and seed, each of which draws anew when it changes."""
    with gradio.Blocks(title="ADD, live", analytics_enabled=False) as page:
        gradio.Markdown("## Type, and the picture follows")
        with gradio.Row():
            with gradio.Column():
                caption = gradio.Textbox(FIRST_CAPTION, label="Caption", elem_id="caption", autofocus=True)
                steps = gradio.Slider(1, drawer.most_steps, value=1, step=1, label="Steps", elem_id="steps")
                seed = gradio.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                took = gradio.Markdown(elem_id="took")
            picture = gradio.Image(label="Picture", elem_id="picture", format="png", interactive=False)
        gradio.on(
            [caption.change, steps.change, seed.change, page.load],
            drawer,
            inputs=[caption, steps, seed],
            outputs=[picture, took],
            show_progress="hidden",  # at this speed it would only flicker
            trigger_mode="always_last",  # keys pressed while it draws are drawn together, the last state always
            api_name="draw",
        )
    return page
