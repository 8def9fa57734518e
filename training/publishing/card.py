"""The model card, made from what a run leaves in its output folder, so that it can be made again when it is published.

`add_run.json` says where the student came from; the rest is read from the published files themselves. The last line of
a card is a seal, a hash of the text above it: a card whose seal does not fit has been edited by someone, and is theirs.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from training.checkpoints.manifest import replace_text
from training.options.options import Options
from training.publishing.card_facts import describe_sampling, measured_table, without_parts
from training.publishing.layout import CARD, INDEX, LORA, MAIN, RUN_FILE, SAMPLES, PublishError
from training.publishing.license import inherited_license

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).parent / "card_template.md"
# An earlier version wrote training/card.py.
_SEAL = re.compile(
    r"<!-- written by training/(?:publishing/)?card\.py; sha256 of the text above: ([0-9a-f]{64}) -->\s*\Z"
)


def record_run(
    options: Options, folder: str | Path, facts: Mapping[str, Any], pipeline_class: str, base_model: str
) -> None:
    """Write `add_run.json`: what the published files do not say themselves. No token, no path of this machine."""
    is_local = os.path.isdir(base_model)
    run = {
        "base_model": Path(base_model).name if is_local else base_model,
        "base_model_on_hub": not is_local,
        "license": inherited_license(base_model, options.hub.hub_token),
        "pipeline_class": pipeline_class,
        "facts": dict(facts),
        "libraries": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "arguments": _public_arguments(options),
    }
    Path(folder, RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def write_card(
    options: Options,
    folder: str | Path,
    facts: Mapping[str, Any],
    pipeline_class: str,
    base_model: str | None = None,
) -> Path:
    """Record the run in `folder`, copy its newest validation grid to `samples.png`, and write `README.md`.

    Args:
        options: of the run.
        folder: holds the published layout already.
        facts: what the card lists under "Training", by name; such as {"iterations": 20000, "effective batch": 64}.
        pipeline_class: name of the stock class, such as StableDiffusionPipeline.
        base_model: Hub id or folder of the model the student started from; `--pretrained_teacher_model` if not given.
    """
    record_run(options, folder, facts, pipeline_class, base_model or options.models.pretrained_teacher_model)
    grids = Path(options.output.output_dir, "validation").glob("step-*.png")
    if newest := max(grids, key=lambda path: int(path.stem.split("-")[1]), default=None):
        shutil.copyfile(newest, Path(folder, SAMPLES))
    return refresh_card(folder, options.hub.hub_model_id or Path(os.path.abspath(options.output.output_dir)).name)


def refresh_card(folder: str | Path, repo_id: str, branch: str = MAIN) -> Path:
    """Write the card again, its snippets naming `repo_id` and `branch`, unless someone has edited it.

    Returns its path. Nothing lies there where training has left no `add_run.json` to make a card from.
    """
    path = Path(folder, CARD)
    if is_edited(path):
        return path
    if Path(folder, RUN_FILE).is_file():
        replace_text(path, make_card(folder, repo_id, branch))
    elif not path.is_file():
        logger.warning(
            "%s lacks %s, which training leaves there: no card can be made. Write %s", folder, RUN_FILE, path
        )
    return path


def set_license(folder: str | Path, name: str) -> None:
    """Say in `add_run.json` that the student's licence is `name`, a Hub identifier such as openrail++."""
    path = Path(folder, RUN_FILE)
    if not path.is_file():
        raise PublishError(f"--license got {name!r}: {folder} lacks {RUN_FILE}; write it into {CARD} yourself")
    run = _read_run(folder) | {"license": {"license": name}}
    replace_text(path, json.dumps(run, indent=2) + "\n")


def make_card(folder: str | Path, repo_id: str, branch: str = MAIN) -> str:
    """The sealed text of the card."""
    folder = Path(folder)
    run = _read_run(folder)
    name, prompts = run["base_model"], run["arguments"].get("validation_prompts") or []
    license_ = run["license"].get("license_name") or run["license"].get("license")
    sampling = describe_sampling(folder)
    measured, command = measured_table(folder)
    card = ModelCard.from_template(
        _card_data(folder, run, prompts),
        template_path=str(TEMPLATE),
        title=repo_id.split("/")[-1],
        repo=repo_id,
        at="" if branch == MAIN else f', revision="{branch}"',
        code_at="" if branch == MAIN else f', custom_revision="{branch}"',
        base=f"[{name}](https://huggingface.co/{name})" if run["base_model_on_hub"] else f"`{name}`",
        base_id=name,
        without=without_parts(folder, run["arguments"]),
        full=(folder / INDEX).is_file(),
        lora=(folder / LORA).is_file(),
        has_samples=(folder / SAMPLES).is_file(),
        samples=SAMPLES,
        prompts=prompts,
        example=json.dumps(prompts[0] if prompts else "a red fox in the snow", ensure_ascii=False),
        side=run["arguments"]["resolution"],
        **sampling,
        facts={**run["facts"], "libraries": ", ".join(f"{k} {v}" for k, v in run["libraries"].items())},
        arguments=yaml.safe_dump(run["arguments"], default_flow_style=None, allow_unicode=True, width=110).strip(),
        measured=measured,
        command=command,
        license=license_,
        license_note=_license_note(name, license_),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n\n"
    return f"{text}<!-- written by training/publishing/card.py; sha256 of the text above: {_digest(text)} -->\n"


def is_edited(path: Path) -> bool:
    """Whether there is a card at `path` that is not just as this module wrote it."""
    return path.is_file() and not is_untouched(path.read_text(encoding="utf-8", errors="replace"))


def is_untouched(text: str) -> bool:
    """Whether `text` is a card just as this module wrote it."""
    text = text.replace("\r\n", "\n")
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _card_data(folder: Path, run: dict, prompts: list[str]) -> ModelCardData:
    """The metadata at the head of the card."""
    lora = (folder / LORA).is_file()
    families = {"XL": "stable-diffusion-xl", "3": "stable-diffusion-3"}
    found = (name for mark, name in families.items() if mark in run["pipeline_class"])
    family = next(found, "stable-diffusion")
    dataset = run["arguments"].get("dataset_name")
    known = {key: value for key, value in run["license"].items() if value}
    if run["base_model_on_hub"]:
        known |= {"base_model": run["base_model"], "base_model_relation": "adapter" if lora else "finetune"}
    if dataset and dataset.count("/") == 1:
        known["datasets"] = [dataset]
    if prompts:
        known["widget"] = [{"text": prompt} for prompt in prompts]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[family, "text-to-image", "image-to-image", "adversarial-diffusion-distillation", "add", "few-step"]
        + ["lora"] * lora,
        **known,
    )


def _read_run(folder: str | Path) -> dict[str, Any]:
    path = Path(folder, RUN_FILE)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PublishError(f"{path} is damaged, so no card can be made: {error}") from error


def _license_note(base: str, license_: str | None) -> str:
    if license_ is None:
        return (
            f"The licence of {base}, from which this model was distilled, carries over to it. It could not be read "
            "when this card was written: look it up before you use this model."
        )
    return f"It is that of {base}, from which this model was distilled: its terms and use restrictions carry over."


def _public_arguments(options: Options) -> dict[str, Any]:
    """The flags that have a value and concern a reader; of a path its last part."""

    def public(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [public(part) for part in value]
        is_path = isinstance(value, str | Path) and (os.path.isabs(value) or os.path.exists(value))
        return Path(value).name if is_path else value

    kept = {name: value for name, value in options.public().items() if value is not None}
    return {key: public(value) for key, value in kept.items()}
