"""Save finished stages of `make world` in the repository, and restore them where the build continues from them.

    python -m examples.showcase.stages restore --networks_dir build/world/networks

The pictures are not saved, because `python -m examples.showcase.write` makes them again. The build uses a restored
stage if its seed, its length and the pictures are the same, and builds it anew otherwise.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from examples.showcase.objects import ATTRIBUTION
from examples.tiny.manifest import NAME, Manifest, hash_files
from training.command import command_name

SAVED_DIR = Path(__file__).parent / "stages"
PICTURES = "data"  # the stage that is not saved
LIMIT_MB = 20.0
README = """# Finished stages of the showcase's networks

Networks that `make world` has trained so far, in float32: `build.json` has what was measured of each on held-out
pictures, the seconds that it took and the hashes of its files. `make world` continues from here.

{attribution} The networks were trained on these pictures.
"""


def save(networks: Path, saved: Path, limit_mb: float = LIMIT_MB) -> float:
    """Copy all finished stages of the build in `networks` but the pictures to `saved`. Returns their size in MB.

    Raises:
        ValueError: `networks` contains no finished stage or a damaged one, `saved` contains other files, or the stages
            are larger than `limit_mb` (10^6 bytes).
    """
    stages = {name: record for name, record in _read(networks).items() if name != PICTURES}
    if not stages:
        raise ValueError(f"--networks_dir {networks}: no stage is finished; build one with `make world`")
    _check(networks, stages)
    if saved.exists() and not (saved / NAME).exists():
        raise ValueError(f"--saved_dir {saved}: exists without a {NAME}, so it is kept; give another folder")
    partial = saved.with_name(f".{saved.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in stages:
        shutil.copytree(networks / name, partial / name)
    Manifest(partial, {}, stages).save()
    (partial / "README.md").write_text(README.format(attribution=ATTRIBUTION), encoding="utf-8")
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) / 1e6
    if size > limit_mb:
        shutil.rmtree(partial)
        raise ValueError(f"--networks_dir {networks}: the stages have {size:.1f} MB, but {limit_mb:g} MB is the limit")
    shutil.rmtree(saved, ignore_errors=True)
    partial.rename(saved)
    return size


def restore(networks: Path, saved: Path) -> list[str]:
    """Copy those stages in `saved` to the build in `networks` that it does not have yet. Returns their names.

    Raises:
        ValueError: a saved stage is damaged.
    """
    stages = _read(saved)
    _check(saved, stages)
    manifest = Manifest.open(networks, {})
    restored = []
    for name, record in stages.items():
        if name not in manifest.stages and not (networks / name).exists():
            partial = networks / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(saved / name, partial)
            partial.rename(networks / name)
            manifest.stages[name] = record
            restored.append(name)
    manifest.save()
    return restored


def _read(folder: Path) -> dict[str, dict]:
    path = folder / NAME
    return json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}


def _check(folder: Path, stages: dict[str, dict]) -> None:
    for name, record in stages.items():
        if hash_files(folder / name) != record["sha256"]:
            raise ValueError(f"{folder / name}: files are missing, added or damaged; remove the folder")


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    parser = argparse.ArgumentParser(
        prog=command_name("examples.showcase.stages"), description="Save or restore finished stages of `make world`."
    )
    parser.add_argument("action", choices=("save", "restore"), help="What to do.")
    parser.add_argument("--networks_dir", type=Path, required=True, help="The --output_dir of examples.tiny.build.")
    parser.add_argument("--saved_dir", type=Path, default=SAVED_DIR, help="Folder of the saved stages.")
    args = parser.parse_args(argv)
    try:
        if args.action == "save":
            print(f"{args.saved_dir}: {save(args.networks_dir, args.saved_dir):.1f} MB")
        else:
            print(f"{args.networks_dir}: restored {', '.join(restore(args.networks_dir, args.saved_dir)) or 'nothing'}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
