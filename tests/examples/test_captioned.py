"""Worlds from captioned folders: trainings that go on after a kill, gates, and what an evaluator reads."""

import json
import math

import pytest
import torch
from torch import nn

from evaluation.metrics import Evaluator
from evaluation.tiny.split import Split, read_split
from examples.tiny import build as builder
from examples.tiny import data
from examples.tiny.captioned import autoencoder, clip, plan, reading, teacher, vision
from examples.tiny.captioned.gates import Course, Gate, GateMissedError
from examples.tiny.captioned.reading import Attributes
from examples.tiny.loop import Checkpoint, draw, fit
from examples.tiny.models import make_vae
from tests.examples.tiny_build import run, write_folder

GATE = Gate("score", 2.0, "Give more images")


def split_of(captions: list[str], labels: list[str] | None = None, **attributes: list[str]) -> Split:
    return Split(torch.zeros(len(captions), 3, 8, 8), captions, labels or captions, attributes)


# --- going on after a kill ------------------------------------------------------------------------


def train_line(checkpoint: Checkpoint | None, dies_at: int | None = None, part: int = 0) -> dict[str, torch.Tensor]:
    """Train a small layer on random batches, with everything that has a state; perhaps die."""
    torch.manual_seed(part)
    model, calls = nn.Linear(3, 1), []

    def loss_of_batch() -> torch.Tensor:
        calls.append(1)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return (model(torch.randn(8, 3)) - draw(5, 8)[:, None]).square().mean()

    settings = {"iterations": 30, "learning_rate": 0.1, "title": "line", "ema_decay": 0.9, "part": part}
    fit([model], loss_of_batch, checkpoint=checkpoint, **settings)
    return {name: value.clone() for name, value in model.state_dict().items()} | {"calls": len(calls)}


def test_killed_training_goes_on_to_the_same_weights(tmp_path):
    """Weights, moving average, optimizer, schedule and random numbers are all continued."""
    expected = train_line(None)
    checkpoint = Checkpoint(tmp_path / "line.pt", "key", seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train_line(checkpoint, dies_at=18)
    resumed = train_line(checkpoint)
    assert resumed["calls"] == 30 - 17
    assert torch.equal(resumed["weight"], expected["weight"])
    assert train_line(checkpoint)["calls"] == 0
    assert torch.equal(train_line(checkpoint)["bias"], expected["bias"])


def test_other_key_or_part_starts_anew(tmp_path):
    """What was trained from other data, or is another round, is not mixed in."""
    train_line(Checkpoint(tmp_path / "line.pt", "key", seconds=0))
    assert train_line(Checkpoint(tmp_path / "line.pt", "other"))["calls"] == 30
    assert train_line(Checkpoint(tmp_path / "line.pt", "other"), part=1)["calls"] == 30


# --- gates ----------------------------------------------------------------------------------------


def course(folder, max_rounds: int = 3, enforce: bool = True) -> Course:
    return Course("autoencoder", 8, max_rounds, enforce, Checkpoint(folder / "stage.pt", "key"))


def rounds_of(course: Course, scores: list[float]) -> tuple[list, dict]:
    """Run `course` on a stage whose score after round n is `scores[n]`. Returns its rounds and figures."""
    rounds = []

    def train(part: int, iterations: int) -> None:
        rounds.append((part, iterations))
        course.checkpoint.save({"part": part})

    return rounds, course.run(train, lambda: {"score": scores[rounds[-1][0]]}, (GATE,))


def test_rounds_end_with_the_gate(tmp_path):
    """One round if that does; later ones are half as long; the figures are the last ones."""
    assert rounds_of(course(tmp_path / "a"), [2.5]) == ([(0, 8)], {"score": 2.5, "rounds": 1})
    assert rounds_of(course(tmp_path / "b"), [1.0, 2.0]) == ([(0, 8), (1, 4)], {"score": 2.0, "rounds": 2})


def test_missed_gate_ends_the_build_and_more_rounds_go_on(tmp_path):
    """The message has stage, figure, bound and advice; with more rounds, the finished ones are not repeated."""
    with pytest.raises(GateMissedError) as error:
        rounds_of(course(tmp_path, max_rounds=2), [1.0, 1.5])
    expected = "autoencoder: score is 1.5 on held-out images and has to be at least 2, after 2 rounds. Give more images"
    assert str(error.value).startswith(expected)
    assert "--max_rounds 4" in str(error.value)
    rounds, figures = rounds_of(course(tmp_path, max_rounds=4), [1.0, 1.5, 3.0])
    assert [part for part, _ in rounds] == [1, 2]
    assert figures["rounds"] == 3


def test_reported_gate_is_passed_by(tmp_path, capsys):
    """With --gates report the build goes on and says what was missed; nan misses every gate."""
    rounds_of(course(tmp_path, max_rounds=1, enforce=False), [math.nan])
    assert "score is nan" in capsys.readouterr().out
    assert not Gate("score", 2.0, "", at_most=True).met({"score": math.nan})
    assert Gate("score", 2.0, "", at_most=True).met({"score": 2.0})


def test_builder_ends_with_one_line(tmp_path):
    """One iteration reaches no gate: exit with the stage, before anything is trained on what it made."""
    folder = write_folder(tmp_path / "images")
    with pytest.raises(SystemExit, match=r"error: autoencoder: psnr_db is .* at least 24, after 1 round\."):
        run(tmp_path / "out", folder, "--gates", "enforce")
    assert not (tmp_path / "out" / "autoencoder").exists()
    assert not (tmp_path / "out" / "clip").exists()


# --- what is read ---------------------------------------------------------------------------------


def test_attributes_are_columns_or_labels_or_words(monkeypatch):
    """In this order, the words only where labels are too many."""
    captions = ["a red dog", "a red cat", "a blue dog", "a blue cat"]
    columns = reading.find_attributes(
        split_of(captions, animal=["dog", "cat"] * 2), split_of(captions, animal=["x"] * 4)
    )
    assert columns.values == {"animal": ("cat", "dog", "x")}
    labels = reading.find_attributes(split_of(captions), split_of(captions[:1]))
    assert labels.values == {"label": tuple(sorted(captions))}
    assert labels.logit_names == sorted(captions)
    monkeypatch.setattr(reading, "MAX_LABELS", 3)
    words = reading.find_attributes(split_of(captions), split_of(captions[:1]))
    assert words.values == dict.fromkeys(["blue", "cat", "dog", "red"], ("no", "yes"))
    assert words.targets(split_of(["the red one"])).tolist() == [[0, 0, 0, 1]]


def test_agreement_by_attribute_and_in_all():
    """Argmax within each attribute's logits; `agreement` needs all of them."""
    attributes = Attributes({"animal": ("cat", "dog"), "colour": ("blue", "green", "red")})
    assert attributes.logit_names[:3] == ["animal: cat", "animal: dog", "colour: blue"]
    logits = torch.tensor([[2.0, 1, 0, 0, 5], [0, 1, 9, 0, 5], [0, 1, 0, 9, 5]])
    targets = torch.tensor([[0, 2], [1, 2], [0, 1]])
    figures = attributes.agreement(logits, targets)
    assert figures == pytest.approx({"agreement": 1 / 3, "agreement_animal": 2 / 3, "agreement_colour": 2 / 3})


def test_words_of_captions():
    """Lower case, no punctuation; those in every caption and those in a single one tell nothing."""
    captions = ["A red dog!", "a red cat", "a blue, dog", "a blue cat", "a blue owl"]
    assert reading.informative_words(captions) == ["blue", "cat", "dog", "red"]
    assert reading.mark_words(["Dog: red, red"], ["blue", "dog", "red"]).tolist() == [[0, 1, 1]]


def test_shared_classifier_knows_captions_it_has_never_seen():
    """Trained on eight of nine captions of two attributes it tells the ninth; `weights` give the same logits."""
    torch.manual_seed(0)
    names = [f"{colour} {animal}" for colour in ("blue", "green", "red") for animal in ("cat", "dog", "owl")]
    classify = vision.SharedClassifier(6, vision.make_marks(Attributes({"label": tuple(names)})))
    features = torch.eye(6)[[0, 0, 0, 1, 1, 1, 2, 2, 2]] + torch.eye(6)[[3, 4, 5] * 3]
    optimizer = torch.optim.Adam(classify.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classify(features[:8]), torch.arange(8)).backward()
        optimizer.step()
    assert classify(features).argmax(dim=1).tolist() == list(range(9))
    weight, bias = classify.weights()
    torch.testing.assert_close(features @ weight.T + bias, classify(features))


def test_classes_of_equal_words_are_told_apart():
    """ "a on b" and "b on a" have the same words; weights of their own are all that tells them."""
    names = ("cat on dog", "dog on cat", "owl on cat", "owl on dog")
    classify = vision.SharedClassifier(4, vision.make_marks(Attributes({"label": names})))
    assert classify.ambiguous.tolist() == [1, 1, 0, 0]
    logits = classify(torch.randn(1, 4))[0]
    assert logits[0] != logits[1]


def test_retrieval_counts_equal_captions_as_right():
    """Each image among the captions of its group."""
    images = torch.eye(4)[[0, 1, 2, 3]]
    assert clip.retrieval(images, images, torch.arange(4), 4) == 1
    swapped = images[[1, 0, 2, 3]]
    assert clip.retrieval(images, swapped, torch.arange(4), 4) == 0.5
    assert clip.retrieval(images, swapped, torch.tensor([0, 0, 1, 2]), 4) == 1
    assert clip.retrieval(images, swapped, torch.arange(4), 1) == 1


def test_tokenizer_is_as_long_as_the_captions():
    """Longer captions make it longer, up to CLIP's 77."""
    short = clip.fit_tokenizer(["a red dog", "a blue dog"]).model_max_length
    assert 5 < short < clip.fit_tokenizer(["a red dog sits on a blue cat beside a green owl"]).model_max_length
    assert clip.fit_tokenizer([" ".join(map(str, range(200)))]).model_max_length == 77


# --- sizes and networks ---------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", plan.RESOLUTIONS)
def test_latents_are_of_one_size(resolution):
    """8 x 8 at either resolution, and the networks fit each other."""
    sizes = plan.make_plan(resolution, 1200)
    vae = make_vae(sizes.vae_channels, sizes.latent_channels, resolution, autoencoder.NORM_GROUPS)
    latents = vae.encode(torch.zeros(1, 3, resolution, resolution)).latent_dist.mean
    assert latents.shape == (1, sizes.latent_channels, 8, 8)
    assert vae.decode(latents).sample.shape == (1, 3, resolution, resolution)


def test_more_images_train_longer():
    """Monotone, bounded on both sides."""
    lengths = [plan.lengthen(1000, images) for images in (10, 1200, 4800, 10**6)]
    assert lengths == [500, 1000, 2000, 4000]
    assert plan.make_plan(64, 9000).unet_channels > plan.make_plan(64, 900).unet_channels


def test_untrained_autoencoder_passes_on_colours():
    """Started near the identity, the posterior mean of plain pictures tells their colours linearly from the start."""
    torch.manual_seed(0)
    colours = torch.rand(64, 3) * 2 - 1
    pixels = colours[:, :, None, None].expand(-1, -1, 32, 32)
    residual = {}
    for name in ("near", "usual"):
        vae = make_vae((16, 16, 32), 4, 32, autoencoder.NORM_GROUPS)
        if name == "near":
            autoencoder.start_near_identity(vae)
        with torch.no_grad():
            output = vae.decode(vae.encode(pixels).latent_dist.mean).sample.mean(dim=(2, 3))
        features = torch.cat([output, torch.ones(64, 1)], dim=1)
        fitted = features @ torch.linalg.lstsq(features, colours).solution
        residual[name] = ((fitted - colours).square().mean() / colours.var()).item()
    assert residual["near"] < 0.5
    assert residual["near"] < 0.8 * residual["usual"]


def test_pictures_depend_on_their_place_alone(tiny, monkeypatch):
    """Sampling in other batches gives the same pictures."""
    pipeline = teacher.DiffusionPipeline.from_pretrained(tiny / "teacher")
    captions = ["a red square", "a blue square", "a green square"]
    whole = teacher.draw_pictures(pipeline, captions, 2, 3.0)
    monkeypatch.setattr(teacher, "SAMPLING_BATCH", 2)
    torch.testing.assert_close(teacher.draw_pictures(pipeline, captions, 2, 3.0), whole, atol=1e-4, rtol=0)
    assert whole.shape == (3, 3, 32, 32)


# --- folders --------------------------------------------------------------------------------------


def write_halves(folder):
    """`train/` and `test/`, with a column of attributes."""
    for half, count in (("train", 12), ("test", 4)):
        write_folder(folder / half, count=count, label=False)
        rows = [json.loads(line) for line in (folder / half / "metadata.jsonl").read_text().splitlines()]
        rows = [{**row, "colour": row["text"].split()[1], "half": half, "number": i} for i, row in enumerate(rows)]
        (folder / half / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_test_folder_is_what_is_held_out(tmp_path):
    """`test/` is not mixed with `train/`; columns of strings are attributes, numbers are not."""
    train, test = data.load_image_folder(write_halves(tmp_path / "images"), seed=0, resolution=64)
    assert (len(train), len(test)) == (12, 4)
    assert {example.attributes["half"] for example in train} == {"train"}
    assert {example.attributes["half"] for example in test} == {"test"}
    assert set(train[0].attributes) == {"colour", "half"}
    assert train[0].image.size == (64, 64)
    data.write_split(tmp_path / "split", train)
    split = read_split(tmp_path / "split")
    assert split.attributes["colour"] == [example.text.split()[1] for example in train]


def test_build_of_64_pixels_with_attributes(tmp_path):
    """A whole build: the evaluator names its attributes and reads each, the teacher draws 64 pixels."""
    out = tmp_path / "out"
    stages = run(out, write_halves(tmp_path / "images"), "--resolution", "64")["stages"]
    assert {"agreement", "agreement_colour", "agreement_half"} <= set(stages["evaluator"]["quality"])
    model = vision.ResNetForImageClassification.from_pretrained(out / "evaluator")
    assert vision.read_attributes(model).values["colour"] == ("blue", "green", "red")
    assert model.config.id2label[0] == "colour: blue"
    pixels = read_split(out / "data" / "test").pixels
    features, logits = Evaluator.from_pretrained(str(out / "evaluator"))(pixels / 2 + 0.5)
    torch.testing.assert_close((features, logits), vision.look(model.eval(), pixels), atol=1e-4, rtol=1e-4)
    pipeline = teacher.DiffusionPipeline.from_pretrained(out / "teacher")
    assert teacher.draw_pictures(pipeline, ["a red square"], 1, 1.0).shape == (1, 3, 64, 64)
    assert pipeline.unet.config.sample_size == 8
    assert not list((out / builder.CHECKPOINTS).glob("*"))


def test_older_code_is_accepted_only_if_asked(tiny, folder, monkeypatch, capsys):
    """An edited module builds its stage anew; --accept_older_code keeps it."""
    monkeypatch.setattr(builder, "hash_code", lambda modules: "edited")
    run(tiny, folder, "--accept_older_code")
    assert ": building" not in capsys.readouterr().out
    run(tiny, folder)
    assert "clip: building" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_rounds", "0"], "--max_rounds must be 1 or more, got 0"),
        (["--resolution", "64"], "--resolution 64 requires --train_data_dir"),
        (["--gates", "open"], "argument --gates: invalid choice: 'open'"),
        (["--resolution", "48"], "argument --resolution: invalid choice: 48"),
    ],
)
def test_bad_flag_is_refused(tmp_path, flags, message, capsys):
    """argparse's exit, naming flag and value."""
    with pytest.raises(SystemExit):
        builder.main(["--output_dir", str(tmp_path / "out"), *flags])
    assert message in capsys.readouterr().err
