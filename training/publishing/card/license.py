"""The licence of a student: that of the model it was distilled from.

The licences of Stable Diffusion carry over to what is derived from it (CreativeML Open RAIL-M, section II.4, and
Open RAIL++-M alike), so the card of a student repeats its base's.
"""

import logging
from pathlib import Path

from huggingface_hub import ModelCard

from training.publishing.hub.token import clean_token, redact

logger = logging.getLogger(__name__)

LICENSE_KEYS = ("license", "license_name", "license_link")
# For bases whose own card cannot be read, offline for instance.
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
    """What the card of `base`, a Hub id or a folder, says of its licence: some of `LICENSE_KEYS`, or nothing.

    The base's own card is asked first, then the table of known bases.
    """
    folder = Path(base)
    if folder.is_dir() and not (folder / "README.md").is_file():
        return {}  # as most local models: nothing to report
    card = folder / "README.md" if folder.is_dir() else base
    try:
        data = ModelCard.load(card, token=clean_token(token), ignore_metadata_errors=True).data
    except Exception as error:  # no network, no card, a damaged one: a run must not end for want of a card's line
        logger.info("The card of %s cannot be read: %s", base, redact(str(error), token))
        return {"license": KNOWN_LICENSES[base]} if base in KNOWN_LICENSES else {}
    return {key: getattr(data, key) for key in LICENSE_KEYS if isinstance(getattr(data, key), str)}
