"""Saving of pipelines in the published layout: a stock `model_index.json` and the pipeline's source, `pipeline.py`."""

# pyright: reportPrivateImportUsage=false

import json
import re
from itertools import product
from pathlib import Path
from typing import ClassVar

from diffusers import DiffusionPipeline

from .stock import StockPipeline

# Config keys in which diffusers and transformers record where a model was loaded from. Local paths should not be
# published, and they would make the files of a model that was loaded and saved again differ from the original ones.
_LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
_NEIGHBOR_IMPORT = re.compile(rb"^from \.(\w+) import (?:\([^)]*\)|.*)\n", flags=re.MULTILINE)


def whole_source(file: str) -> bytes:
    """Return the source of the module `file`, with imports of neighboring modules replaced by their source.

    Each module is inserted once, at its first import. A published `pipeline.py` has no such imports, so its source is
    returned unchanged.
    """
    inserted = set()

    def insert(path: Path) -> bytes:
        def replace(line: re.Match[bytes]) -> bytes:
            name = line[1].decode()
            if name in inserted:
                return b""
            inserted.add(name)
            return insert(path.with_name(f"{name}.py"))

        return _NEIGHBOR_IMPORT.sub(replace, path.read_bytes())

    return insert(Path(file))


class SavingMixin(StockPipeline):
    """Saves a pipeline for stock diffusers, together with its source for loading it as remote code.

    Attributes:
        _stock_class: class in `model_index.json`.
        _source: content of `pipeline.py`.
    """

    _stock_class: ClassVar[type[DiffusionPipeline]]
    _source: ClassVar[bytes]

    def to_json_string(self) -> str:
        """Return the content of `model_index.json` with the stock class and without the path of the pipeline."""
        index = json.loads(super().to_json_string()) | {"_class_name": self._stock_class.__name__}
        index.pop("_name_or_path", None)
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory, *args, **kwargs) -> None:
        """Write `pipeline.py` and clean the configs; `save_pretrained` and `push_to_hub` call this before uploading."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        Path(save_directory, "pipeline.py").write_bytes(self._source)
        for name, kind in product(self.components, ("config.json", "tokenizer_config.json")):
            file = Path(save_directory, name, kind)
            if file.is_file():
                config = json.loads(file.read_text(encoding="utf-8"))
                config = {key: value for key, value in config.items() if key not in _LOADING_TRACES}
                file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        super().save_config(save_directory, *args, **kwargs)
