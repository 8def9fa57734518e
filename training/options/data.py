"""Flags of the training data."""

from dataclasses import dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, NOT_NEGATIVE, Resume, flag

FIXED, FREE = Resume.FIXED, Resume.FREE


@dataclass(frozen=True)
class DataOptions:
    """The training data and how a sample is made of it."""

    title: ClassVar[str] = "data"

    dataset_name: str | None = flag(
        None,
        "Hub id or local path of an image-caption data set; or a loader of `datasets` (webdataset, json, csv, parquet, "
        "arrow, imagefolder) for the files in --train_data_dir.",
        resume=FIXED,
    )
    dataset_config_name: str | None = flag(None, "Configuration of the data set, if it has several.", resume=FIXED)
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the data set's Hub repo.", resume=FIXED)
    dataset_split: str = flag("train", "Split of the data set to train on.", resume=FIXED)
    train_data_dir: str | None = flag(
        None,
        "Folder of images with a metadata.jsonl (.csv, .parquet) that has `file_name` and the caption column, or with "
        "a .txt file beside each image; of WebDataset .tar shards; or written by save_to_disk.",
        resume=FIXED,
    )
    image_column: str = flag(
        "image", "Column that holds the image; for WebDataset the extension, such as jpg.", resume=FIXED
    )
    caption_column: str = flag(
        "text",
        "Column that holds the caption or a list of captions; for WebDataset the extension, such as txt.",
        resume=FIXED,
    )
    max_train_samples: int | None = flag(
        None, "Use only this many samples of the data set.", resume=FIXED, range=AT_LEAST_ONE
    )
    streaming: bool = flag(
        False, "Read the data set while it is downloaded instead of downloading it first.", resume=FIXED
    )
    resolution: int = flag(
        512,
        "Side of the training images in pixels, a multiple of 8. The paper uses 512.",
        resume=FIXED,
        range=AT_LEAST_ONE,
    )
    center_crop: bool = flag(False, "Crop the center of each image. By default the crop is random.", resume=FIXED)
    random_flip: bool = flag(False, "Flip half of the images horizontally.", resume=FIXED)
    dataloader_num_workers: int = flag(
        0,
        "Number of processes that load data; 0 loads in the main process.",
        resume=Resume.FIXED_FOR_STREAMS,
        range=NOT_NEGATIVE,
    )
