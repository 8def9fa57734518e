"""Prompts from each kind of file, in the layouts that COCO and PartiPrompts have."""

import json

import datasets
import pytest

from evaluation.errors import EvaluationError
from evaluation.generation.prompts import choose_prompts, load_dataset_prompts, read_prompts


def test_a_text_file_has_one_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\n  two   dogs \n")
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "two dogs"]


def test_parti_prompts(tmp_path):
    """Quotes are part of a prompt there, not of the format."""
    (tmp_path / "p.tsv").write_text('Prompt\tCategory\na "bond\tWorld\nthe "X" sign\tWorld\n')
    assert read_prompts(tmp_path / "p.tsv") == ['a "bond', 'the "X" sign']


def test_coco_gives_one_caption_an_image(tmp_path):
    """The caption of lowest id, in the order of the images' ids, whatever the order of the file."""
    annotations = [(9, 30, "c2"), (7, 30, "c1"), (8, 4, "a1 \n"), (1, 12, "b1"), (20, 4, "a2")]
    rows = [{"id": i, "image_id": image, "caption": caption} for i, image, caption in annotations]
    (tmp_path / "captions_val2017.json").write_text(json.dumps({"images": [], "annotations": rows}))
    assert read_prompts(tmp_path / "captions_val2017.json") == ["a1", "b1", "c1"]


def test_an_image_folders_metadata(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a", "short": "b"}\n')
    assert read_prompts(tmp_path / "metadata.jsonl") == ["a"]
    assert read_prompts(tmp_path / "metadata.jsonl", "short") == ["b"]


def test_a_data_set_gives_the_first_of_several_captions(tmp_path):
    rows = [
        {"captions": ["a cat", "cats"], "name": "x"},
        {"captions": [], "name": "y"},
        {"captions": ["a dog"], "name": "z"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    assert load_dataset_prompts(str(tmp_path), None, "train", "captions") == ["a cat", "a dog"]
    assert load_dataset_prompts(str(tmp_path), None, "train", "name") == ["x", "y", "z"]
    with pytest.raises(EvaluationError, match=r"--caption_column text: .* has captions, name"):
        load_dataset_prompts(str(tmp_path), None, "train", "text")
    with pytest.raises(EvaluationError, match=r"--dataset_split test: .* has train"):
        load_dataset_prompts(str(tmp_path), None, "test", "name")


def test_choosing_is_by_seed_and_without_repetition():
    prompts = [str(i) for i in range(50)]
    chosen = choose_prompts(prompts, 20, seed=1)
    assert len(set(chosen)) == 20
    assert chosen == choose_prompts(prompts, 20, seed=1) != choose_prompts(prompts, 20, seed=2)
    assert choose_prompts(prompts, None, seed=1) == prompts
    with pytest.raises(EvaluationError, match="--num_prompts 51: there are 50"):
        choose_prompts(prompts, 51, seed=1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "\n \n", "no prompt"),
        ("p.csv", "a", "give a file that ends in .txt"),
        ("p.json", "[1]", "layout"),
        ("p.jsonl", '{"caption": "a"}', "'text'"),
        ("p.tsv", "prompt\na\n", "'Prompt'"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=rf"--prompts .*{name}.*{message}"):
        read_prompts(tmp_path / name)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="No such file"):
        read_prompts(tmp_path / "absent.txt")
