"""Flags of the training data."""

from dataclasses import dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, NOT_NEGATIVE, Resume, flag

FIXED, FREE = Resume.FIXED, Resume.FREE


@dataclass(frozen=True)
class DataOptions:
    """The training data and its preprocessing."""

    title: ClassVar[str] = "data"

    dataset_name: str | None = flag(
        None,
        "Hub id or local path of a data set of images and captions, or the name of a `datasets` loader (webdataset, "
        "json, csv, parquet, arrow, imagefolder) for the files in --train_data_dir.",
        resume=FIXED,
    )
    dataset_config_name: str | None = flag(None, "Configuration of the data set, if it has several.", resume=FIXED)
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the data set's Hub repo.", resume=FIXED)
    dataset_split: str = flag("train", "Split of the data set to train on.", resume=FIXED)
    train_data_dir: str | None = flag(
        None,
        "Folder with the training data: images and a metadata.jsonl (.csv, .parquet) with a `file_name` column "
        "and the caption column, images with a .txt file beside each of them, WebDataset .tar shards, or a data set "
        "written by save_to_disk.",
        resume=FIXED,
    )
    image_column: str = flag(
        "image",
        "Column of the data set that contains the image. For WebDataset, the extension of the images, such as jpg.",
        resume=FIXED,
    )
    caption_column: str = flag(
        "text",
        "Column of the data set that contains a caption or a list of captions. For WebDataset, the extension of the "
        "captions, such as txt.",
        resume=FIXED,
    )
    max_train_samples: int | None = flag(
        None, "Maximum number of samples of the data set to use.", resume=FIXED, range=AT_LEAST_ONE
    )
    streaming: bool = flag(
        False, "Read the data set while it is being downloaded instead of downloading it first.", resume=FIXED
    )
    resolution: int = flag(
        512,
        "Height and width of the training images in pixels; must be a multiple of 8. The paper uses 512.",
        resume=FIXED,
        range=AT_LEAST_ONE,
    )
    center_crop: bool = flag(
        False, "Crop the center of each image. By default, the position of the crop is random.", resume=FIXED
    )
    random_flip: bool = flag(False, "Flip each image horizontally with a probability of 0.5.", resume=FIXED)
    dataloader_num_workers: int = flag(
        0,
        "Number of subprocesses that load data. 0 means that the data is loaded in the main process.",
        resume=Resume.FIXED_FOR_STREAMS,
        range=NOT_NEGATIVE,
    )
