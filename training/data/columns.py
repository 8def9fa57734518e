"""The columns of images and of captions: are they there, and if not, which are meant?"""

from collections.abc import Sequence

from training.data.errors import DataError

# Names that such columns have in published data sets, the commonest first; WebDataset's are extensions of files.
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_path", "path")
CAPTION_NAMES = ("text", "caption", "captions", "txt", "prompt", "description", "en", "title")


def check_columns(columns: Sequence[str], image_column: str, caption_column: str, source: str) -> None:
    """Check that both columns are among `columns`.

    Args:
        columns: names of the data set's columns.
        image_column, caption_column: values of the flags of the same names.
        source: the flag and value that the data set comes from.

    Raises:
        DataError: one of them is missing; names the columns that there are, and the one to pass instead.
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
