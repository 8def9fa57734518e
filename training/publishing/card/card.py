"""The model card. It is made from the files in the output folder, so it can be updated when the student is published.

`add_run.json` describes the run; everything else is read from the published files. The last line of a card is a hash of
the text above it. If the hash does not match, a user has edited the card, and it is not overwritten.
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
from urllib.parse import quote

import yaml
from huggingface_hub import ModelCard, ModelCardData

from training.checkpoints.manifest import replace_text
from training.markdown import code_block, code_span, escape_markdown
from training.options.options import Options
from training.publishing.card.facts import describe_sampling, measured_table, without_parts
from training.publishing.card.license import inherited_license
from training.publishing.folder.layout import CARD, INDEX, LORA, MAIN, RUN_FILE, SAMPLES, PublishError

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).parent / "template.md"
# In cards of earlier versions, the path is training/card.py or training/publishing/card.py.
_SEAL = re.compile(
    r"<!-- written by training/(?:publishing/)?(?:card/)?card\.py; sha256 of the text above: ([0-9a-f]{64}) -->\s*\Z"
)


def record_run(
    options: Options, folder: str | Path, facts: Mapping[str, Any], pipeline_class: str, base_model: str
) -> None:
    """Write `add_run.json` with the facts that are not in the published files, without tokens and local paths."""
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
        options: options of the run.
        folder: folder that already contains the published layout.
        facts: facts for the section "Training" of the card, such as {"iterations": 20000, "effective batch": 64}.
        pipeline_class: name of the pipeline class, such as StableDiffusionPipeline.
        base_model: Hub id or folder of the model the student started from; `--pretrained_teacher_model` if not given.
    """
    record_run(options, folder, facts, pipeline_class, base_model or options.models.pretrained_teacher_model)
    grids = Path(options.output.output_dir, "validation").glob("step-*.png")
    if newest := max(grids, key=lambda path: int(path.stem.split("-")[1]), default=None):
        shutil.copyfile(newest, Path(folder, SAMPLES))
    return refresh_card(folder, options.hub.hub_model_id or Path(os.path.abspath(options.output.output_dir)).name)


def refresh_card(folder: str | Path, repo_id: str, branch: str = MAIN) -> Path:
    """Update the card for `repo_id` and `branch`, unless a user has edited it.

    Returns the path of the card. If there is no `add_run.json`, no card is written.
    """
    path = Path(folder, CARD)
    if is_edited(path):
        return path
    if Path(folder, RUN_FILE).is_file():
        replace_text(path, make_card(folder, repo_id, branch))
    elif not path.is_file():
        logger.warning(
            "No card can be made, because %s has no %s from training. Write %s yourself", folder, RUN_FILE, path
        )
    return path


def set_license(folder: str | Path, name: str) -> None:
    """Set the student's licence in `add_run.json` to `name`, a Hub identifier such as openrail++.

    Raises:
        PublishError: the folder has no `add_run.json`.
    """
    path = Path(folder, RUN_FILE)
    if not path.is_file():
        raise PublishError(f"--license got {name!r}: {folder} has no {RUN_FILE}; add the licence to {CARD} yourself")
    run = _read_run(folder) | {"license": {"license": name}}
    replace_text(path, json.dumps(run, indent=2) + "\n")


def make_card(folder: str | Path, repo_id: str, branch: str = MAIN) -> str:
    """Make the text of the card, with escaped names, prompts and figures, and with the hash in its last line."""
    folder = Path(folder)
    run = _read_run(folder)
    name, prompts = run["base_model"], run["arguments"].get("validation_prompts") or []
    license_ = run["license"].get("license_name") or run["license"].get("license")
    sampling = describe_sampling(folder)
    measured, command = measured_table(folder)
    card = ModelCard.from_template(
        _card_data(folder, run, prompts),
        template_path=str(TEMPLATE),
        title=escape_markdown(repo_id.split("/")[-1]),
        repo=_literal(repo_id),
        at="" if branch == MAIN else f", revision={_literal(branch)}",
        code_at="" if branch == MAIN else f", custom_revision={_literal(branch)}",
        base=_link(name) if run["base_model_on_hub"] else code_span(name),
        base_id=_literal(name),
        without=without_parts(folder, run["arguments"]),
        full=(folder / INDEX).is_file(),
        lora=(folder / LORA).is_file(),
        latent=run["arguments"].get("discriminator") == "latent",
        has_samples=(folder / SAMPLES).is_file(),
        samples=SAMPLES,
        prompts=[escape_markdown(prompt) for prompt in prompts],
        example=_literal(prompts[0] if prompts else "a red fox in the snow"),
        side=run["arguments"]["resolution"],
        **sampling,
        facts={escape_markdown(fact): escape_markdown(str(value)) for fact, value in _facts(run).items()},
        arguments=code_block(_as_yaml(run["arguments"]), "yaml"),
        measured=measured,
        command=code_block(command),
        license=code_span(license_) if license_ else "",
        license_note=_license_note(escape_markdown(name), license_),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n\n"
    return f"{text}<!-- written by training/publishing/card/card.py; sha256 of the text above: {_digest(text)} -->\n"


def _literal(text: str) -> str:
    """`text` as a Python string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _link(name: str) -> str:
    """A repo's name as a link to it."""
    return f"[{escape_markdown(name)}](https://huggingface.co/{quote(name)})"


def _facts(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run["facts"], "libraries": ", ".join(f"{name} {number}" for name, number in run["libraries"].items())}


def _as_yaml(arguments: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(arguments), default_flow_style=None, allow_unicode=True, width=110).strip()


def is_edited(path: Path) -> bool:
    """Whether there is a card at `path` that was changed since this module wrote it."""
    return path.is_file() and not is_untouched(path.read_text(encoding="utf-8", errors="replace"))


def is_untouched(text: str) -> bool:
    """Whether `text` is a card that was not changed since this module wrote it."""
    text = text.replace("\r\n", "\n")
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _card_data(folder: Path, run: dict, prompts: list[str]) -> ModelCardData:
    """The metadata at the top of the card."""
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
            f"This model inherits the licence of {base}, from which it was distilled. That licence could not be read "
            "when this card was written; look it up before you use this model."
        )
    return f"This model inherits the licence, terms and use restrictions of {base}, from which it was distilled."


def _public_arguments(options: Options) -> dict[str, Any]:
    """The public flags that have a value. Of paths, only the last part is kept."""

    def public(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [public(part) for part in value]
        is_path = isinstance(value, str | Path) and (os.path.isabs(value) or os.path.exists(value))
        return Path(value).name if is_path else value

    kept = {name: value for name, value in options.public().items() if value is not None}
    return {key: public(value) for key, value in kept.items()}
