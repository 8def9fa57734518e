"""The page of the ablations: tables beside the paper's values, the findings that hold, and the commands of all rows."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation.ablations.findings import COLLAPSE, FINDINGS, MARGIN, Sample
from evaluation.ablations.run import Job, read_figures
from evaluation.ablations.tables import DEFAULT, TABLES, AblationRow
from evaluation.ablations.worlds import World, missing_for
from training.markdown import code_block, code_span, escape_markdown

Results = dict[tuple[str, int], dict[str, Sample]]  # (run, sampling steps) to figures over the seeds


def collect_results(jobs: Iterable[Job]) -> Results:
    """Collect the figures of all finished jobs."""
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for job in jobs:
        for steps, figures in (read_figures(job.folder) or {}).items():
            for key, value in figures.items():
                values.setdefault((job.row.run, steps), {}).setdefault(key, []).append(value)
    return {place: {key: Sample(tuple(found)) for key, found in keys.items()} for place, keys in values.items()}


def format_sample(sample: Sample | None, key: str) -> str:
    """Format a sample as e.g. `2.05 ± 0.12`; agreement with three digits, as the paper prints CLIP scores."""
    if sample is None:
        return "-"
    digits = 3 if key == "agreement" else 2
    spread = "" if sample.spread is None else f" ± {sample.spread:.{digits}f}"
    return f"{sample.mean:.{digits}f}{spread}"


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _paper(row: AblationRow) -> tuple[str, str]:
    fid, clip_score = ("-" if value is None else f"{value:g}" for value in (row.fid, row.clip_score))
    return fid, clip_score


def ablation_table(letter: str, world: World, results: Results) -> str:
    """One part of Table 1 in Markdown. For rows without figures, the reason is shown."""
    part, keys = TABLES[letter], list(world.headings)
    head = ["row", *world.headings.values(), "seeds", "paper's FID ↓", "paper's CLIP score ↑"]
    lines = [_line(head), "|---|" + "--:|" * (len(head) - 1)]
    for row in part.rows:
        figures = results.get((row.run, 1), {})
        reason = missing_for(world, row) or ("" if figures else "not run")
        label = f"**{row.label}**" if row.run == DEFAULT else row.label
        ours = [format_sample(figures.get(key), key) for key in keys]
        seeds = len(figures["distance"].values) if figures else f"({reason})"
        lines.append(_line([label, *ours, seeds, *_paper(row)]))
    return f"### ({letter}) {part.title}\n\n" + "\n".join(lines)


def steps_table(letters: Iterable[str], world: World, results: Results) -> str:
    """The table of students that were measured with several numbers of sampling steps."""
    rows = {row.run: row for letter in letters for row in TABLES[letter].rows if len(row.sampling_steps) > 1}
    lines = [_line(["row", "sampling steps", *world.headings.values()]), "|---|--:|" + "--:|" * len(world.headings)]
    for run, row in rows.items():
        label = "**default**" if run == DEFAULT else row.label
        for steps in row.sampling_steps:
            figures = results.get((run, steps), {})
            lines.append(_line([label, steps, *(format_sample(figures.get(key), key) for key in world.headings)]))
    return "### Sampling steps\n\n" + "\n".join(lines)


def judge_findings(letters: Iterable[str], results: Results) -> list[dict[str, str]]:
    """All findings of these tables for which something was measured, with their verdicts."""

    def figure(run: str, key: str, steps: int) -> Sample | None:
        return results.get((run, steps), {}).get(key)

    letters = {*letters, "steps"}
    judged = [(finding, finding.verdict(figure)) for finding in FINDINGS if finding.table in letters]
    return [{"table": f.table, "finding": f.text, "verdict": v} for f, v in judged if v is not None]


def results_json(letters: list[str], jobs: list[Job], results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    """The content of the page as JSON values."""
    runs = [
        {"run": run, "sampling_steps": steps, **{key: list(sample.values) for key, sample in figures.items()}}
        for (run, steps), figures in sorted(results.items())
    ]
    commands = {f"{job.row.run}/seed-{job.seed}": shlex.join(job.command) for job in jobs}
    return {
        "tables": letters,
        "findings": judge_findings(letters, results),
        "runs": runs,
        "commands": commands,
        **facts,
    }


def _failures(failed: dict[str, str]) -> str:
    return "\n".join(f"- {escape_markdown(name)}: {escape_markdown(message)}" for name, message in failed.items())


def ablations_markdown(
    letters: list[str],
    world: World,
    jobs: list[Job],
    results: Results,
    failed: dict[str, str],
    notes: Path | None,
    facts: dict[str, Any],
) -> str:
    """Compose the page.

    Args:
        failed: error messages by run.
        notes: Markdown file with an interpretation of the results.
        facts: `command`, `preparations` (lists of commands) and `environment`.
    """
    findings = [
        _line([entry["table"], entry["finding"], f"**{entry['verdict']}**"])
        for entry in judge_findings(letters, results)
    ]
    environment = ", ".join(f"{key} {value}" for key, value in facts["environment"].items())
    parts = [
        "# The paper's ablations (Table 1), run again",
        f"Ours: mean ± standard deviation over seeds; {world.protocol}, one sampling step. Paper: FID and CLIP score "
        "on 5,000 images of COCO 2017, one run a row. The two measure different things on different data: what can "
        "be compared is which row is better. The default is bold and the same run in every table.",
        "## Findings",
        "\n".join(["| table | the paper's finding | here |", "|---|---|---|", *findings]),
        f"A difference counts where it is larger than {MARGIN:g} standard errors of itself; otherwise, and with one "
        "seed, nothing is decided. What should be no worse is so unless the opposite is decided. To collapse is to "
        f"have {COLLAPSE:g} times the default's distance.",
        *([notes.read_text(encoding="utf-8").strip()] if notes else []),
        "## Tables",
        *(ablation_table(letter, world, results) for letter in letters),
        steps_table(letters, world, results),
        *(["## Failed", _failures(failed)] if failed else []),
        "## How to repeat",
        f"All of it: {code_span(facts['command'])}. Row by row:",
        code_block("\n".join(map(shlex.join, [*facts["preparations"], *(job.command for job in jobs)])), "sh"),
        f"Measured with {escape_markdown(environment)}.",
    ]
    return "\n\n".join(parts) + "\n"
