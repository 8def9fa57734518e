"""Facts about sampling and measured figures for the model card, read from the student's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from diffusers import DDPMScheduler

from pipelines import DEFAULT_STUDENT_TIMESTEPS, spread_timesteps
from training.markdown import escape_markdown, markdown_table
from training.publishing.folder.layout import INDEX, SCHEDULER, PublishError
from training.publishing.folder.published_folder import files_to_keep
from training.publishing.folder.replacement import replacing_student
from training.publishing.folder.verification import MEASURED_FILE

FORM = '{"command": "python -m ...", "figures": [{"steps": 1, "FID": 20.6}]}'


def describe_sampling(folder: Path) -> dict[str, Any]:
    """Facts about the student's timesteps and noise schedule for the code examples of the card.

    Returns:
        "steps", such as "1 to 4 steps"; "two_steps", the argument and its value with which a stock pipeline visits the
        timesteps of two steps, None for a student with only one timestep; "precision", the reason for float16;
        "scheduler", the stock class.
    """
    config = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    known = config.get("_student_timesteps", DEFAULT_STUDENT_TIMESTEPS)
    return {
        "steps": "1 step" if len(known) == 1 else f"1 to {len(known)} steps",
        "two_steps": None if len(known) == 1 else _two_steps(config, known),
        "precision": _precision(config),
        "scheduler": config.get("_class_name", "DDPMScheduler"),
    }


def without_parts(folder: Path, arguments: Mapping[str, Any]) -> str:
    """Arguments with which stock pipelines load a student that has no T5, or the base of a LoRA trained without."""
    index = folder / INDEX
    parts = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    is_absent = parts.get("text_encoder_3") == [None, None] or arguments.get("no_text_encoder_3", False)
    return ", text_encoder_3=None, tokenizer_3=None" if is_absent else ""


def _is_flow(config: dict[str, Any]) -> bool:
    """Whether a scheduler's config is one of flow matching."""
    return "shift" in config


def _two_steps(config: dict[str, Any], known: list[int]) -> tuple[str, list[float] | list[int]]:
    timesteps = spread_timesteps(known, 2)
    if _is_flow(config):
        return "sigmas", [(t + 1) / config["num_train_timesteps"] for t in timesteps]
    return "timesteps", timesteps


def _precision(config: dict[str, Any]) -> str:
    """The reason for float16: x0 = (x - sigma * eps) / alpha multiplies the rounding error of eps by sigma / alpha."""
    if _is_flow(config):
        return (
            "float16 and bfloat16 both serve: this student predicts a velocity, whose rounding no step multiplies. Its "
            f"scheduler, {config['_class_name']}, is part of diffusers 0.42 and later."
        )
    text = "Use float16, which rounds eight times finer than bfloat16."
    if config.get("prediction_type", "epsilon") == "epsilon":
        scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(config))
        remaining = float(scheduler.alphas_cumprod[-1])
        if remaining > 0:
            factor = ((1 - remaining) / remaining) ** 0.5
            text += (
                " This student predicts the noise. At the last timestep, where sampling starts, the rounding error of "
                f"its prediction is multiplied by {factor:.1f} (sigma / alpha), which is visible in bfloat16."
            )
    return text


def read_measured(path: Path, before: str = "") -> tuple[str, list[dict[str, Any]]]:
    """Read the command and the rows of a file of figures.

    Args:
        path: `comparison.json` of `python -m evaluation compare`, or a file of the form `FORM`; other keys are ignored.
        before: beginning of the error message, such as "--measured got ".

    Raises:
        PublishError: the file does not exist or has another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        command, rows = content["command"], [dict(row) for row in content["figures"]]
        if not isinstance(command, str) or not rows:
            raise ValueError("the command must be text, and there must be at least one row")
        if strange := [key for row in rows for key, value in row.items() if isinstance(value, dict | list)]:
            raise ValueError(f"{strange[0]!r} must be a number or text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PublishError(
            f"{before}{path} cannot be read ({type(error).__name__}: {error}). It must contain the command and a list "
            f"of rows: {FORM}"
        ) from error
    return command, rows


def measured_table(folder: Path) -> tuple[str, str]:
    """The Markdown table of `measured.json` and the command that produced it; both empty if there is no such file."""
    if not (folder / MEASURED_FILE).is_file():
        return "", ""
    command, rows = read_measured(folder / MEASURED_FILE)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head, *body = [
        [escape_markdown(str(cell)) for cell in line]
        for line in (columns, *([row.get(column, "-") for column in columns] for row in rows))
    ]
    return markdown_table(head, body, text_columns=len(head)).strip(), command


def add_measured(folder: Path, path: Path) -> None:
    """Check a file of figures and write it to the student's `measured.json`.

    Raises:
        PublishError: see `read_measured`; or the folder was not written by training.
    """
    command, rows = read_measured(path, "--measured got ")
    with replacing_student(folder, added_to=files_to_keep(folder)) as stage:
        text = json.dumps({"command": command, "figures": rows}, indent=2, ensure_ascii=False)
        (stage / MEASURED_FILE).write_text(text + "\n", encoding="utf-8")
