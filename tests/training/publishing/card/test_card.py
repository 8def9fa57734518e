"""The model card: what it says, what it keeps to itself, and whose it is."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipelines import flow_student_scheduler
from tests.support.runs import options_of
from training.options import Options
from training.publishing.card.card import is_untouched, make_card, refresh_card, set_license, write_card
from training.publishing.card.license import inherited_license
from training.publishing.folder.layout import PublishError

FACTS = {"iterations": 20000, "effective batch": 64}
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def arguments(tmp_path) -> Options:
    """Of a run in `tmp_path`; the base's card is not available, since tests are offline."""
    return options_of(
        "--pretrained_teacher_model", SD, "--output_dir", tmp_path / "my-fox", "--hub_token", "hf_secret",
        "--train_data_dir", tmp_path, "--learning_rate", 1e-5, "--cache_dir", "/somewhere/private",
        "--validation_prompts", "a red fox", 'a "big" {{ castle }}',
    )  # fmt: skip


def changed(options, group, **values):
    """`options` with other values in one group."""
    return dataclasses.replace(options, **{group: dataclasses.replace(getattr(options, group), **values)})


@pytest.fixture
def folder(arguments) -> Path:
    """What is of interest to the card of a full model."""
    folder = Path(arguments.output.output_dir)
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_student_timesteps": [249, 499, 749, 999]}')
    (folder / "model_index.json").write_text("{}")
    (folder / "validation").mkdir()
    for step in (9, 10):
        (folder / "validation" / f"step-{step}.png").write_bytes(b"grid %d" % step)
    return folder


def written(arguments, folder, pipeline_class="StableDiffusionPipeline", **options) -> ModelCard:
    return ModelCard.load(write_card(arguments, folder, FACTS, pipeline_class, **options))


def test_metadata(arguments, folder):
    """As the Hub reads it, through its own classes."""
    data = written(arguments, folder).data
    assert data.base_model == SD
    assert data.base_model_relation == "finetune"
    assert data.license == "creativeml-openrail-m"
    assert {"library_name": "diffusers", "pipeline_tag": "text-to-image"}.items() <= vars(data).items()
    assert {"stable-diffusion", "add", "adversarial-diffusion-distillation"} <= set(data.tags)
    assert data.widget == [{"text": "a red fox"}, {"text": 'a "big" {{ castle }}'}]
    assert data.datasets is None


def test_metadata_of_sdxl_and_lora(arguments, folder):
    arguments = changed(arguments, "models", pretrained_student_model=SDXL)
    arguments = changed(arguments, "data", dataset_name="me/pictures", train_data_dir=None)
    (folder / "pytorch_lora_weights.safetensors").touch()
    data = written(arguments, folder, "StableDiffusionXLPipeline", base_model=SDXL).data
    assert (data.base_model, data.base_model_relation, data.license) == (SDXL, "adapter", "openrail++")
    assert {"stable-diffusion-xl", "lora"} <= set(data.tags)
    assert data.datasets == ["me/pictures"]


def test_body(arguments, folder):
    """Figures of the run, the newest grid, and snippets that name the repo and are Python."""
    card = written(arguments, folder)
    assert "- iterations: 20000\n- effective batch: 64\n" in card.text
    assert "1 to 4 steps" in card.text
    assert "learning_rate: 1.0e-05" in card.text
    assert "Nothing has been measured for this repo." in card.text
    assert "inherits the licence, terms and use restrictions" in card.text
    assert "![Samples](samples.png)" in card.text
    assert (folder / "samples.png").read_bytes() == b"grid 10"
    blocks = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        compile(block, "card", "exec")
    assert 'from_pretrained("my-fox"' in blocks[0]
    assert 'from_pretrained("me/fox"' in make_card(folder, "me/fox")


def test_snippets_on_a_branch_load_from_it(arguments, folder):
    """All but the generic one; code has a revision of its own."""
    written(arguments, folder)
    assert "revision" not in "".join(re.findall(r"```python\n(.*?)```", make_card(folder, "me/fox"), flags=re.DOTALL))
    blocks = re.findall(r"```python\n(.*?)```", make_card(folder, "me/fox", "checkpoints"), flags=re.DOTALL)
    assert [block.count('revision="checkpoints"') for block in blocks] == [1, 2, 1, 0]


def test_only_the_code_snippet_trusts_code(arguments, folder):
    blocks = re.findall(r"```python\n(.*?)```", written(arguments, folder).text, flags=re.DOTALL)
    assert ["trust_remote_code=True" in block for block in blocks] == [False, True, False, False]


def test_card_of_a_lora_alone(arguments, folder):
    """Shows the base with the adapter, never a pipeline that is not there."""
    (folder / "model_index.json").unlink()
    (folder / "pytorch_lora_weights.safetensors").touch()
    card = written(arguments, folder)
    assert f'"{SD}", torch_dtype' in card.text
    assert 'DDPMScheduler.from_pretrained("my-fox", subfolder="scheduler")' in card.text
    assert "trust_remote_code" not in card.text


def test_nothing_private_is_recorded(arguments, folder, tmp_path):
    """No token, no folder of this machine, neither in the card nor in what it is made from."""
    written(arguments, folder)
    for name in ("README.md", "add_run.json"):
        text = (folder / name).read_text()
        for secret in ("hf_secret", "hub_token", str(tmp_path), "/somewhere"):
            assert secret not in text, name
    assert json.loads((folder / "add_run.json").read_text())["arguments"]["train_data_dir"] == tmp_path.name


def test_measured_figures_come_with_their_command(arguments, folder):
    figures = [{"steps": 1, "FID": 20.6}, {"steps": 4, "FID": 19.0, "CLIP": 0.32}]
    (folder / "measured.json").write_text(json.dumps({"command": "python -m evaluation x", "figures": figures}))
    text = written(arguments, folder).text
    assert "| steps | FID | CLIP |\n| --- | --- | --- |\n| 1 | 20.6 | - |\n| 4 | 19.0 | 0.32 |" in text
    assert "```\npython -m evaluation x\n```" in text
    (folder / "measured.json").write_text('{"figures": []}')
    with pytest.raises(PublishError, match=r"measured.json cannot be read \(KeyError: 'command'\)\. It must contain"):
        make_card(folder, "me/fox")


HOSTILE = '"<script>alert(1)</script> [x](javascript:y) | $z$ *a* `b`\n```\n# c\n```\n<img src=x>'


def without_code(text: str) -> str:
    """The body of a card without its blocks and spans of code."""
    text = re.sub(r"^(`{3,})\w*\n.*?^\1\n", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_text_of_people_and_files_is_shown_as_it_is(arguments, folder, lora, is_local):
    """Prompts, names, figures, the command and the licence: no HTML, no links, no headings, no end of a code block."""
    arguments = changed(arguments, "validation", validation_prompts=(HOSTILE,))
    arguments = changed(arguments, "data", dataset_name=HOSTILE, train_data_dir=None)
    rows = [{"run": HOSTILE, HOSTILE: 1.5}]
    (folder / "measured.json").write_text(json.dumps({"command": HOSTILE, "figures": rows}))
    if lora:
        (folder / "pytorch_lora_weights.safetensors").touch()
    write_card(arguments, folder, {"changed on resume": HOSTILE, HOSTILE: 1}, "StableDiffusionPipeline")
    run = json.loads((folder / "add_run.json").read_text())
    run |= {"base_model": HOSTILE, "base_model_on_hub": not is_local, "license": {"license": HOSTILE}}
    (folder / "add_run.json").write_text(json.dumps(run))
    text = make_card(folder, HOSTILE.replace("/", ""), HOSTILE)
    body = text.split("\n---\n", 1)[1].rsplit("<!-- written by", 1)[0]
    shown = without_code(body)
    assert "script" in shown
    assert not re.search(r"<(?!/?(details|summary)>)", shown)
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]", shown)
    assert not re.search(r"^# c", shown, re.MULTILINE)
    assert len(re.findall(r"^# ", shown, re.MULTILINE)) == 1
    (table,) = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()] == [3, 3, 3]
    blocks = re.findall(r"^```python\n(.*?)^```\n", body, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == (5 if lora else 4)
    for block in blocks:
        compile(block, "card", "exec")


def test_seal(arguments, folder):
    """Any edit breaks it, in head or body or after it; other line ends do not."""
    written(arguments, folder)
    text = (folder / "README.md").read_text()
    assert is_untouched(text)
    assert is_untouched(text.replace("\n", "\r\n"))
    edits = (
        text.replace("license: creativeml-openrail-m", "license: mit"),
        text.replace("# my-fox", "# My fox"),
        text + "More.\n",
        text.rsplit("<!--", 1)[0],
    )
    assert not any(is_untouched(edit) for edit in edits)


def test_seal_of_an_earlier_version(arguments, folder):
    """The module has moved since; the cards that it wrote are ours still."""
    written(arguments, folder)
    text = (folder / "README.md").read_text()
    assert "<!-- written by training/publishing/card/card.py; sha256" in text
    for earlier in ("training/card.py", "training/publishing/card.py"):
        assert is_untouched(text.replace("training/publishing/card/card.py", earlier))
    assert not is_untouched(text.replace("training/publishing/card/card.py", "other/card.py"))


@pytest.mark.parametrize(
    ("known", "shown"), [([249, 499, 749, 999], "[999, 499]"), ([699, 799, 899, 999], "[999, 799]"), ([999], None)]
)
@pytest.mark.parametrize("lora", [False, True])
def test_image_to_image_visits_what_the_student_knows(arguments, folder, known, shown, lora):
    """By the stock schedule two steps would visit 499, whatever the student was trained at. With one timestep there is
    nothing between noise and image, and no snippet."""
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_student_timesteps": known}))
    if lora:
        (folder / "model_index.json").unlink()
        (folder / "pytorch_lora_weights.safetensors").touch()
    text = written(arguments, folder).text
    calls = re.findall(r"image=image, .*", text)
    call = f"image=image, timesteps={shown}, strength=0.5, guidance_scale=0.0).images[0]"
    assert calls == ([] if shown is None else [call])
    assert ("AutoPipelineForImage2Image" in text) == (shown is not None)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(block, "card", "exec")


@pytest.mark.parametrize("lora", [False, True])
def test_precision(arguments, folder, lora):
    """float16, and by how much an epsilon student's rounding grows: 14.6 on Stable Diffusion's schedule."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    path = folder / "scheduler" / "scheduler_config.json"
    if lora:
        (folder / "model_index.json").unlink()
        (folder / "pytorch_lora_weights.safetensors").touch()
    path.write_text(json.dumps(config))
    text = written(arguments, folder).text
    assert "torch_dtype=torch.float16" in text
    assert "torch.bfloat16" not in text
    assert text.count("is multiplied by 14.6 (sigma / alpha)") == 1
    path.write_text(json.dumps(config | {"prediction_type": "v_prediction"}))
    text = written(arguments, folder).text
    assert "multiplied by" not in text
    assert "Use float16" in text


def test_flow_matching_student(arguments, folder):
    """Its stock scheduler and the noise levels that stock pipelines take; its rounding is not multiplied."""
    (folder / "pytorch_lora_weights.safetensors").touch()
    scheduler = flow_student_scheduler({"num_train_timesteps": 1000, "shift": 3.0})
    scheduler.save_pretrained(folder / "scheduler")
    card = written(arguments, folder, "ADDSD3Pipeline")
    assert "stable-diffusion-3" in card.data.tags
    assert "multiplied by" not in card.text
    assert "FlowMapEulerDiscreteScheduler, is part of diffusers 0.42" in card.text
    assert 'FlowMapEulerDiscreteScheduler.from_pretrained("my-fox", subfolder="scheduler")' in card.text
    assert card.text.count("image=image, sigmas=[1.0, 0.5], strength=0.5") == 2
    for block in re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL):
        compile(block, "card", "exec")


def test_student_without_t5_says_how_stock_pipelines_load_it(arguments, folder):
    """By its index; our own class knows."""
    none = ", text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float16"
    assert none not in written(arguments, folder).text
    (folder / "model_index.json").write_text('{"text_encoder_3": [null, null]}')
    blocks = re.findall(r"```python\n(.*?)```", written(arguments, folder).text, flags=re.DOTALL)
    assert [none in block for block in blocks] == [True, False, True, False]


def test_edited_card_is_left_alone(arguments, folder):
    """Here too, also by a resumed run that comes to its end again."""
    written(arguments, folder)
    mine = (folder / "README.md").read_text().replace("# my-fox", "# My fox")
    (folder / "README.md").write_text(mine)
    written(arguments, folder)
    assert (folder / "README.md").read_text() == mine


def test_folder_without_a_record_of_its_run(tmp_path, caplog):
    """A card written by hand will do; without one a warning says what to write."""
    assert not refresh_card(tmp_path, "me/fox").exists()
    assert "No card can be made, because" in caplog.text
    with pytest.raises(PublishError, match=r"--license got 'mit'"):
        set_license(tmp_path, "mit")
    (tmp_path / "README.md").write_text("# Mine\n")
    assert refresh_card(tmp_path, "me/fox").read_text() == "# Mine\n"


def test_license_of_a_local_base_is_that_of_its_card(arguments, folder, tmp_path):
    """With name and link where the Hub has no identifier; the base is named, but not where it lies."""
    base = tmp_path / "my-base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: foxes\nlicense_link: LICENSE\n---\n# Base\n")
    arguments = changed(arguments, "models", pretrained_teacher_model=str(base))
    data = written(arguments, folder).data
    assert (data.license, data.license_name, data.license_link) == ("other", "foxes", "LICENSE")
    assert data.base_model is None


def test_unknown_license_is_left_out_and_said(arguments, folder):
    arguments = changed(arguments, "models", pretrained_teacher_model="someone/something")
    card = written(arguments, folder)
    assert card.data.license is None
    assert "could not be read" in card.text
    set_license(folder, "mit")
    refresh_card(folder, "me/fox")
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_local_base_without_a_card_is_no_news(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert inherited_license(str(tmp_path)) == {}
    assert caplog.text == ""


def test_license_of_a_base_without_one(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [fox]\n---\n")
    assert inherited_license(str(tmp_path)) == {}
