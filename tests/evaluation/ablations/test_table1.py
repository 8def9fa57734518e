"""Table 1: its rows are commands that the training scripts take, its runs resumable."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import train_add
import train_add_sdxl
from discriminator import FeatureNetwork
from evaluation import __main__ as evaluation_command
from evaluation.ablations import __main__ as ablations
from evaluation.ablations.findings import OPEN
from evaluation.ablations.recipe import DEFAULT_RECIPE, merge_flags, read_recipe
from evaluation.ablations.report import ablation_table, ablations_markdown, judge_findings
from evaluation.ablations.run import plan_jobs, read_figures, run_jobs
from evaluation.ablations.tables import TABLES
from evaluation.ablations.worlds import RealWorld, TinyWorld, missing_for
from evaluation.errors import EvaluationError
from evaluation.tiny import task as tiny_task
from examples.tiny import stand_ins
from tests.evaluation.commands import exit_status
from tests.evaluation.tiny_folder import make_tiny_dir
from tests.support.runs import options_of
from training.options.models import SDXLOptions
from training.options.refusals import refuse

ROWS = [row for part in TABLES.values() for row in part.rows]
RECIPE = ["--train_batch_size", "4", "--learning_rate", "1e-3", "--report_to", "none"]
SCRIPTS = {"train_add.py": train_add.main, "train_add_sdxl.py": train_add_sdxl.main}


@pytest.fixture(scope="module")
def tiny(world, tmp_path_factory):
    return make_tiny_dir(world, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_sdxl(sdxl_world, tmp_path_factory):
    return make_tiny_dir(sdxl_world, tmp_path_factory.mktemp("tiny_sdxl"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer images: what is measured is not the question here."""
    monkeypatch.setattr(tiny_task, "NOISES", 2)
    monkeypatch.setattr(tiny_task, "CAPTIONS", 2)
    monkeypatch.setattr(tiny_task, "seconds_per_image", lambda *_, **__: 0.0)


class Here:
    """Launches in this process, and keeps what was launched."""

    def __init__(self):
        self.commands = []

    def __call__(self, log):
        def launch(command):
            self.commands.append(command)
            if command[1] in SCRIPTS:
                SCRIPTS[command[1]](command[2:])
            else:
                assert command[:3] == ["python", "-m", "evaluation"]
                assert exit_status(evaluation_command.main, command[3:]) == 0

        return launch


def by_run(*names):
    return [next(row for row in ROWS if row.run == name) for name in names]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.run)
def test_every_row_is_a_command_that_the_script_takes(tiny, tiny_sdxl, tmp_path, row):
    """With the demo's recipe; no placeholder is left, and each row says something of its own."""
    world = TinyWorld(tiny, tiny_sdxl, tmp_path)
    if missing_for(world, row):
        assert row.run in ("features-dinov1-s", "features-dinov2-l")
        world = RealWorld(str(tiny), str(tiny_sdxl), tiny, tiny)
    (job,) = plan_jobs([row], world, [3], read_recipe(DEFAULT_RECIPE), 5, tmp_path, ["python"])
    command = list(job.command)
    assert command[:2] == ["python", row.script]
    assert not [word for word in command if word.startswith("{")]
    more = () if row.script == "train_add.py" else (SDXLOptions,)
    if "--train_data_dir" not in command:
        command += ["--dataset_name", "a-set"]
    options = options_of(*command[2:], more=more)
    refuse(options)
    length = (options.optimization.seed, options.optimization.max_train_steps)
    assert (*length, options.output.resume_from_checkpoint) == (3, 5, "latest")
    assert options.method.distillation_weighting == {"loss-sds": "sds", "loss-nfsd": "nfsd"}.get(row.run, "exponential")


def test_no_two_runs_are_one_training(tiny, tiny_sdxl, tmp_path):
    """Rows of one run are the same training; different runs differ in more than their folder."""
    world = TinyWorld(tiny, tiny_sdxl, tmp_path)
    jobs = plan_jobs(ROWS, world, [0, 1], read_recipe(DEFAULT_RECIPE), 5, tmp_path, ["python"])
    assert len({(job.row.run, job.seed) for job in jobs}) == len(jobs) == 2 * (len({row.run for row in ROWS}) - 2)
    trainings = {tuple(word for word in job.command if str(tmp_path / "runs") not in word) for job in jobs}
    assert len(trainings) == len(jobs)
    assert all(len({row.flags for row in ROWS if row.run == run}) == 1 for run in {row.run for row in ROWS})


def test_the_last_of_equal_flags_wins():
    """As argparse has it, with all of its values."""
    words = ["--a", "1", "2", "--flag", "--b", "x", "--a", "-3"]
    assert merge_flags(words) == ["--a", "-3", "--flag", "--b", "x"]
    assert merge_flags(words, {"--flag", "--a"}) == ["--b", "x"]


def test_what_a_row_takes_back_stands_in_the_recipe():
    """A flag that the recipe lacks would make the row the default under another name."""
    taken = {flag for row in ROWS for flag in row.without}
    assert taken
    assert taken <= set(read_recipe(DEFAULT_RECIPE))


def test_rows_are_trained_measured_kept_and_reported(tiny, tmp_path, capsys):
    """Two rows, one of which fails at first: the other goes on, the next call runs the failed one alone."""
    world = TinyWorld(tiny, None, tmp_path / "stand_ins", num_samples=8)
    rows = by_run("default", "loss-adversarial")
    jobs = plan_jobs(rows, world, [0], RECIPE, 2, tmp_path, ["python"])

    def broken(log):
        def launch(command):
            if "--distillation_weight" not in command:
                raise EvaluationError("killed")
            Here()(log)(command)

        return launch

    assert run_jobs(jobs, world, broken) == {"default, seed 0": "killed"}
    assert read_figures(jobs[0].folder) is None
    launch_for = Here()
    assert run_jobs(jobs, world, launch_for) == {}
    assert [Path(command[command.index("--output_dir") + 1]) for command in launch_for.commands] == [jobs[0].student]
    assert run_jobs(jobs, world, launch_for) == {}
    assert len(launch_for.commands) == 1  # all done
    four = json.loads((jobs[1].folder / "metrics.json").read_text())
    (jobs[1].folder / "metrics.json").write_text(json.dumps({steps: four[steps] for steps in "12"}))
    assert run_jobs(jobs, world, launch_for) == {}
    assert json.loads((jobs[1].folder / "metrics.json").read_text()) == four  # measured again, not trained
    assert len(launch_for.commands) == 1
    figures = [read_figures(job.folder) for job in jobs]
    assert [sorted(found) for found in figures] == [[1, 2, 4], [1, 2, 4]]
    assert figures[0][1]["distance"] != figures[1][1]["distance"]
    results = ablations.collect_results(jobs)
    facts = {"command": "C", "preparations": [], "environment": {"torch": "x"}}
    page = ablations_markdown(["d"], world, jobs, results, {}, None, facts)
    assert f"| adv | {figures[1][1]['distance']:.2f} | {figures[1][1]['agreement']:.3f} |" in page
    assert "| 1 | 20.8 | 0.315 |" in page
    assert f"| adv | 4 | {figures[1][4]['distance']:.2f} | {figures[1][4]['agreement']:.3f} |" in page
    assert f"| **default** | 2 | {figures[0][2]['distance']:.2f} |" in page
    assert "(not run) | 315.6 | 0.076 |" in page
    assert all(" ".join(job.command) in page for job in jobs)
    assert {entry["verdict"] for entry in judge_findings(["d"], results)} == {OPEN}  # of one seed nothing follows
    with pytest.raises(EvaluationError, match=r"There: .*2.*; now: .*3"):
        run_jobs(plan_jobs(rows, world, [0], RECIPE, 3, tmp_path, ["python"]), world, launch_for)
    other = TinyWorld(tiny, None, tmp_path / "stand_ins", num_samples=6)
    with pytest.raises(EvaluationError, match="now: 6"):
        run_jobs(jobs, other, launch_for)
    assert len(launch_for.commands) == 1


def test_a_killed_training_goes_on_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    """Stopped in the third of three iterations: the next call does that one alone."""
    world = TinyWorld(tiny, None, tmp_path / "stand_ins", num_samples=8)
    jobs = plan_jobs(by_run("loss-adversarial"), world, [0], RECIPE, 3, tmp_path, ["python"])
    original, computed = train_add.iteration, []

    def iteration(*args):
        computed.append(None)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train_add, "iteration", iteration)
    with pytest.raises(SystemExit, match="130"):
        run_jobs(jobs, world, Here())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert run_jobs(jobs, world, Here()) == {}
    assert len(computed) == 4
    assert read_figures(jobs[0].folder)


def test_a_student_of_sdxl_with_a_teacher_of_another_space(tiny, tiny_sdxl, tmp_path):
    """Table 1e's furthest row, trained by the other script and drawn with by the other pipeline."""
    world = TinyWorld(tiny, tiny_sdxl, tmp_path / "stand_ins", num_samples=8)
    jobs = plan_jobs(by_run("teacher-sdxl-of-sd"), world, [0], RECIPE, 1, tmp_path, ["python"])
    assert run_jobs(jobs, world, Here()) == {}
    assert read_figures(jobs[0].folder)[1]["distance"] > 0
    index = json.loads((jobs[0].student / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"


def test_real_models_are_measured_by_the_evaluation_commands(tiny, tmp_path):
    """The same jobs with --base: the images come by `generate`, the figures by `measure`."""
    prompts = tiny / "data/test/metadata.jsonl"
    world = RealWorld(str(tiny / "teacher"), None, prompts, tiny / "data/test", 8, str(tiny / "evaluator"))
    recipe = [*RECIPE, "--train_data_dir", str(tiny / "data/train"), "--resolution", "32",
              "--discriminator_feature_model", str(tiny / "feature_network"), "--discriminator_text_model", "none",
              "--discriminator_image_model", "none"]  # fmt: skip
    rows = by_run("loss-sds", "teacher-sd-of-sdxl")
    jobs = plan_jobs(rows, world, [0], recipe, 1, tmp_path, ["python"])
    assert [job.row.run for job in jobs] == ["loss-sds"]
    launch_for = Here()
    assert run_jobs(jobs, world, launch_for) == {}
    assert [command[:4] for command in launch_for.commands[1:]] == [
        ["python", "-m", "evaluation", "generate"],
        ["python", "-m", "evaluation", "measure"],
    ]
    figures = read_figures(jobs[0].folder)[1]
    measured = json.loads((jobs[0].folder / "images-1/metrics.json").read_text())["figures"]
    assert figures == {"distance": measured["fd_evaluator"]["value"], "agreement": measured["alignment"]["value"]}
    assert "(no --base_xl)" in ablation_table("e", world, {})


def test_stand_ins_are_feature_networks(tiny, tmp_path):
    """Both are what the discriminator loads, of F's depth; what is there is not made again, what is half made is."""
    world = TinyWorld(tiny, None, tmp_path)
    rows = by_run("default", "features-clip-l", "features-untrained")
    (command,) = world.preparations(rows)
    assert world.preparations(by_run("default")) == []
    stand_ins.main([*command[3:], "--iterations", "1"])
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(made) == 2
    assert world.preparations(rows) == [command]
    (tmp_path / "untrained" / "preprocessor_config.json").unlink()
    stand_ins.main([*command[3:], "--iterations", "1"])
    again = {path.parent.name for path, made_at in made.items() if path.stat().st_mtime_ns != made_at}
    assert again == {"untrained"}
    depths = [
        FeatureNetwork.from_pretrained(world.networks.get(name, str(tiny / "feature_network"))).backbone.config
        for name in ("clip_l", "untrained", "dinov2_s")
    ]
    assert len({(config.num_hidden_layers, config.hidden_size) for config in depths}) == 1


def flags(tiny, out, *extra):
    return [str(word) for word in ("--table", "c", "--tiny_dir", tiny, "--output_dir", out, *extra)]


def test_a_dry_run_names_rows_prints_commands_and_makes_nothing(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        exit_status(ablations.main, flags(tiny, out, "--dry_run", "--launcher", "accelerate launch", "--seeds", "5"))
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == ["# table c: random; seed 5", "# table c: pretrained; seed 5"]
    assert [line.split()[:3] for line in lines[1::2]] == [["accelerate", "launch", "train_add.py"]] * 2
    assert "--student_init random" in lines[1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--tiny_dir", "nowhere"), "--tiny_dir nowhere: no data/train/metadata.jsonl there"),
        (("--tiny_sdxl_dir", "nowhere"), "--tiny_sdxl_dir nowhere: no data/train"),
        (("--base", "a"), "either --tiny_dir FOLDER"),
        (("--recipe", "nowhere.txt"), "--recipe nowhere.txt: "),
        (("--seeds", 0, 0), "--seeds [0, 0]"),
        (("--max_train_steps", 0), "--max_train_steps 0"),
        (("--num_samples", 1), "--num_samples 1"),
        (("--notes", "nowhere.md"), "--notes nowhere.md"),
    ],
)
def test_refuses_what_cannot_work(tiny, tmp_path, extra, message, capsys):
    assert exit_status(ablations.main, flags(tiny, tmp_path / "out", *extra)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [((), "--recipe examples/demo/recipe.txt: it is for digits"), (("--recipe", "mine"), "--prompts None: ")],
)
def test_a_real_base_needs_its_own_recipe_and_prompts(tmp_path, monkeypatch, extra, message, capsys):
    monkeypatch.setattr(ablations, "read_recipe", lambda path: RECIPE)
    command = ["--table", "b", "--base", "model", "--output_dir", str(tmp_path), *extra]
    assert exit_status(ablations.main, command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [("", "it starts with"), ("--use_ema --output_dir x", "remove --output_dir")]
)
def test_a_recipe_is_flags(tmp_path, text, message):
    path = tmp_path / "recipe.txt"
    path.write_text(f"# comment\n{text}\n")
    with pytest.raises(EvaluationError, match=message):
        read_recipe(path)
