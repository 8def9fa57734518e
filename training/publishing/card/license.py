"""The licence of a student, which it inherits from the model that it was distilled from.

The licences of Stable Diffusion (CreativeML Open RAIL-M, section II.4, and likewise Open RAIL++-M) also apply to
derived models, so the card of a student repeats the licence of its base.
"""

import logging
from pathlib import Path

from huggingface_hub import ModelCard

from training.publishing.hub.token import clean_token, redact

logger = logging.getLogger(__name__)

LICENSE_KEYS = ("license", "license_name", "license_link")
# For base models whose card cannot be read, for example offline.
KNOWN_LICENSES = {
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2": "openrail++",
    "stabilityai/stable-diffusion-2-base": "openrail++",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}


def inherited_license(base: str, token: str | None = None) -> dict[str, str]:
    """The licence of `base`, a Hub id or folder, as values for some of `LICENSE_KEYS`; empty if unknown.

    It is read from the card of the base, or else from the table of known base models.
    """
    folder = Path(base)
    if folder.is_dir() and not (folder / "README.md").is_file():
        return {}  # like most local models
    card = folder / "README.md" if folder.is_dir() else base
    try:
        data = ModelCard.load(card, token=clean_token(token), ignore_metadata_errors=True).data
    except Exception as error:  # no network, no card or a damaged one, which must not end the run
        logger.info("The card of %s cannot be read: %s", base, redact(str(error), token))
        return {"license": KNOWN_LICENSES[base]} if base in KNOWN_LICENSES else {}
    return {key: getattr(data, key) for key in LICENSE_KEYS if isinstance(getattr(data, key), str)}
