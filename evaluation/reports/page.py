"""Rendering of self-contained HTML pages from the templates in the folders of the evaluation."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

SHOWN = 384  # pixels; a grid of 512-pixel PNGs would be a page of hundreds of megabytes
SHARP_BELOW = 128  # smaller images are enlarged by the browser without smoothing

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1]),
    autoescape=True,  # prompts and names are arbitrary text
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, **values: Any) -> str:
    """Render a template, given by its path in `evaluation/`. Values are escaped unless the template marks them safe."""
    return _templates.get_template(template).render(**values)


def as_data_uri(image: Image.Image) -> str:
    """Encode an image as a data URI: small images as lossless PNG, others as JPEG, resized to 384 pixels."""
    buffer = io.BytesIO()
    if max(image.size) <= SHARP_BELOW:
        image.save(buffer, format="PNG")
        kind = "png"
    else:
        image = image.copy()
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
