"""What a card says of sampling and of measurements, read from the student's folder."""

import json
from pathlib import Path
from typing import Any, cast

from diffusers import DDPMScheduler

from pipelines import DEFAULT_STUDENT_TIMESTEPS, spread_timesteps
from training.publishing.folder.layout import SCHEDULER, PublishError
from training.publishing.folder.published_folder import files_to_keep
from training.publishing.folder.replacement import replacing_student
from training.publishing.folder.verification import MEASURED_FILE

FORM = '{"command": "python -m ...", "figures": [{"steps": 1, "FID": 20.6}]}'


def describe_sampling(folder: Path) -> dict[str, Any]:
    """What the card's snippets need to know of the student's timesteps and noise schedule.

    Returns:
        "steps", such as "1 to 4 steps"; "two_steps", the timesteps that two steps visit, descending, None for a student
        that knows only one; "precision", why float16 is used.
    """
    config = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    known = config.get("_student_timesteps", DEFAULT_STUDENT_TIMESTEPS)
    return {
        "steps": "1 step" if len(known) == 1 else f"1 to {len(known)} steps",
        "two_steps": None if len(known) == 1 else spread_timesteps(known, 2),
        "precision": _precision(config),
    }


def _precision(config: dict[str, Any]) -> str:
    """Why float16: x0 = (x - sigma * eps) / alpha multiplies the rounding of eps by sigma / alpha."""
    text = "Use float16, which rounds eight times finer than bfloat16."
    if config.get("prediction_type", "epsilon") == "epsilon":
        scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(config))
        remaining = float(scheduler.alphas_cumprod[-1])
        if remaining > 0:
            factor = ((1 - remaining) / remaining) ** 0.5
            text += (
                " This student predicts the noise, and at the last timestep, where each image starts, the rounding of "
                f"its prediction is multiplied by {factor:.1f} (sigma / alpha): in bfloat16 that can be seen."
            )
    return text


def read_measured(path: Path, before: str = "") -> tuple[str, list[dict[str, Any]]]:
    """The command and the rows of a file of figures.

    Args:
        path: `comparison.json` of `python -m evaluation compare`, or a file of the form `FORM`; other keys are ignored.
        before: begins the message of an error, such as "--measured got ".

    Raises:
        PublishError: the file is not there, or of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        command, rows = content["command"], [dict(row) for row in content["figures"]]
        if not isinstance(command, str) or not rows:
            raise ValueError("the command must be text, and there must be a row")
        if strange := [key for row in rows for key, value in row.items() if isinstance(value, dict | list)]:
            raise ValueError(f"{strange[0]!r} must be a number or text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PublishError(
            f"{before}{path} cannot be read ({type(error).__name__}: {error}). It holds the command and a list of "
            f"rows: {FORM}"
        ) from error
    return command, rows


def measured_table(folder: Path) -> tuple[str, str]:
    """The Markdown table of `measured.json` and the command that gave it; empty where nothing was measured."""
    if not (folder / MEASURED_FILE).is_file():
        return "", ""
    command, rows = read_measured(folder / MEASURED_FILE)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "-") for column in columns] for row in rows)]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells), command


def add_measured(folder: Path, path: Path) -> None:
    """Copy a file of figures, read once and found good, to the student's `measured.json`. Goes with the student.

    Raises:
        PublishError: see `read_measured`; or the folder was not written by training.
    """
    command, rows = read_measured(path, "--measured got ")
    with replacing_student(folder, added_to=files_to_keep(folder)) as stage:
        text = json.dumps({"command": command, "figures": rows}, indent=2, ensure_ascii=False)
        (stage / MEASURED_FILE).write_text(text + "\n", encoding="utf-8")
