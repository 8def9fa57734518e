"""Check that the image and caption columns exist, and suggest the right ones if they do not."""

from collections.abc import Sequence

from training.data.errors import DataError

# Column names in published data sets, the most common first. Those of WebDataset are file extensions.
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_path", "path")
CAPTION_NAMES = ("text", "caption", "captions", "txt", "prompt", "description", "en", "title")


def check_columns(columns: Sequence[str], image_column: str, caption_column: str, source: str) -> None:
    """Check that both columns are among `columns`.

    Args:
        columns: names of the data set's columns.
        image_column, caption_column: values of the flags of the same names.
        source: flag and value that name the data set, for the error message.

    Raises:
        DataError: a column is missing; the message lists the existing columns and suggests one.
    """
    for flag, column, known in (
        ("--image_column", image_column, IMAGE_NAMES),
        ("--caption_column", caption_column, CAPTION_NAMES),
    ):
        if column in columns:
            continue
        likely = next((name for name in known if name in columns), "COLUMN for one of them")
        raise DataError(
            f"{flag} {column}: {source} has no such column, only: {', '.join(columns) or 'none'}; pass {flag} {likely}"
        )
