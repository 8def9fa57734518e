"""Where rows come from: tar shards, saved data sets, loaders, and data sets that cannot be had."""

import io
import json
import tarfile

import datasets
import pytest

from tests.training.data.image_rows import folder, load, number_of, picture
from training.data.dataset import load_image_text_dataset, make_dataloader
from training.data.errors import DataError
from training.data.order import SampleKey
from training.data.reader import SampleReader
from training.data.sources import Source, image_folders


def read(rows, image="image", caption="text"):
    reader = SampleReader(image, caption, 8, center_crop=True)
    samples = [reader(row, SampleKey(0, i, i), i) for i, row in enumerate(rows)]
    return [(number_of(sample), sample["caption"]) for sample in samples]


def shards(path):
    """Two shards of three images, and the files that img2dataset writes beside them."""
    path.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(path / f"{shard:05d}.tar", "w") as tar:
            for number in range(3 * shard, 3 * shard + 3):
                for ending, data in (("png", picture(number)), ("txt", f"caption {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        (path / f"{shard:05d}_stats.json").write_text("{}")
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", [None, "webdataset"])
def test_webdataset(tmp_path, name, streaming):
    """A folder of .tar shards; the columns are the extensions of the files in them."""
    path = shards(tmp_path / "set")
    options = {"dataset_name": name, "streaming": streaming}
    rows = load(path, tmp_path, image_column="png", caption_column="txt", **options)
    assert read(rows, "png", "txt") == [(i, f"caption {i}") for i in range(6)]
    assert (rows.num_shards if streaming else len(rows)) == (2 if streaming else 6)
    with pytest.raises(DataError, match=r"--image_column image: .* no such column, only: .*; pass --image_column png$"):
        load(path, tmp_path, **options)
    with pytest.raises(DataError, match=r"--caption_column text: .*; pass --caption_column txt$"):
        load(path, tmp_path, image_column="png", **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_shard(tmp_path, streaming):
    """A shard that was cut is one line, at the start or where the stream arrives at it."""
    path = shards(tmp_path / "set")
    data = (path / "00001.tar").read_bytes()
    (path / "00001.tar").write_bytes(data[:600])

    def read_all():
        rows = load(path, tmp_path, image_column="png", caption_column="txt", streaming=streaming)
        list(make_dataloader(rows, SampleReader("png", "txt", 8), batch_size=4))

    with pytest.raises(DataError, match=r"(--train_data_dir|--streaming).*ReadError: unexpected end of data") as error:
        read_all()
    assert "\n" not in str(error.value)


def test_webdataset_without_shards(tmp_path):
    path = folder(tmp_path / "set", {"0.png": picture(0)})
    with pytest.raises(DataError, match=r"--dataset_name webdataset --train_data_dir .*no \.tar files in the folder"):
        load(path, tmp_path, dataset_name="webdataset")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("flag", ["train_data_dir", "dataset_name"])
def test_saved_to_disk(tmp_path, flag, streaming):
    """A folder of save_to_disk, of one data set or of several splits, and the format it was saved with is not kept."""
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(i), "path": None} for i in range(3)], "text": ["a", "b", "c"]}
    ).cast_column("image", datasets.Image())
    rows.with_format("numpy").save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        loaded = load_image_text_dataset(**{flag: str(tmp_path / name)}, streaming=streaming)
        assert read(loaded) == [(0, "a"), (1, "b"), (2, "c")]
        assert type(next(iter(loaded))["text"]) is str
    assert read(load_image_text_dataset(**{flag: str(tmp_path / "two")}, split="test")) == [(2, "c")]
    with pytest.raises(DataError, match=r"--dataset_split test: .*only: train; pass --dataset_split train$"):
        load_image_text_dataset(**{flag: str(tmp_path / "one")}, split="test")


def test_loader_with_a_folder(tmp_path):
    """--dataset_name json reads the files in --train_data_dir."""
    (tmp_path / "0.png").write_bytes(picture(5))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text(json.dumps({"image": str(tmp_path / "0.png"), "text": "five"}) + "\n")
    assert read(load(tmp_path / "set", tmp_path, dataset_name="json")) == [(5, "five")]


@pytest.mark.parametrize("streaming", [False, True])
def test_mistakes_are_one_line(tmp_path, streaming):
    """A data set that cannot be reached, a broken line of JSON, a CSV with other columns."""
    files = {
        "broken/a.jsonl": '{"image": "0.png", "text": "x"}\n{"image": "0.p',
        "table/a.csv": "image,caption\n0.png,x\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    for name, expected in (
        ("no/such", r"^--dataset_name no/such: the Hub cannot be reached \(.*OfflineModeIsEnabled.*--train_data_dir"),
        ("broken", r"^--dataset_name \S+broken: cannot be loaded \(\w+: "),
        ("table", r"^--caption_column text: --dataset_name \S+table .*image, caption; pass --caption_column caption$"),
    ):
        place = name if "/" in name else str(tmp_path / name)
        with pytest.raises(DataError, match=expected) as error:
            next(make_dataloader(
                load_image_text_dataset(dataset_name=place, cache_dir=str(tmp_path / "cache"), streaming=streaming),
                SampleReader("image", "text", 8), batch_size=1,
            ))  # fmt: skip
        assert "\n" not in str(error.value)


def test_a_column_without_images(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_text("image,text\n3,x\n")
    with pytest.raises(
        DataError, match=r"--image_column image: .*set has no images in this column \(.*; pass another column"
    ):
        load_image_text_dataset(dataset_name=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))


def test_revision_is_passed_on(monkeypatch):
    """To datasets, for a data set of the Hub."""
    asked = {}

    def load_dataset(name, config, **options):
        asked.update(options, name=name, config=config)
        return datasets.DatasetDict({"validation": datasets.Dataset.from_dict({"image": [], "text": []})})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_image_text_dataset(dataset_name="a/b", dataset_config_name="c", split="validation", revision="f" * 40)
    assert (asked["name"], asked["config"], asked["revision"]) == ("a/b", "c", "f" * 40)


def test_image_folders(tmp_path):
    """Rows of the Hub may name files in the caches only; a local list of files may name any."""
    folders = image_folders(Source("a/b", cache_dir=str(tmp_path)))
    assert str(tmp_path) in folders
    assert len(folders) == 3
    for source in (Source(folder=str(tmp_path)), Source(str(tmp_path)), Source("json", folder=str(tmp_path))):
        assert image_folders(source) is None
