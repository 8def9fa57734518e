"""Pack trained networks in half precision, with hashes, for distribution.

    python -m examples.showcase.pack --networks_dir build/world/networks --output_dir build/world/packed

writes `teacher/` (the complete pipeline with the autoencoder), `clip/`, `feature_network/`, `evaluator/`, `build.json`
(arguments and measured quality), `SHA256SUMS` and `README.md`.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from examples.showcase.objects import ATTRIBUTION
from training.command import command_name

FOLDERS = ("teacher", "clip", "feature_network", "evaluator")
LIMIT_MB = 20.0
README = """# Showcase networks

Small networks in Stable Diffusion's layout, trained by `make world` on the pictures of
`python -m examples.showcase.write` and stored in half precision. `build.json` has the arguments of the build
and the measured quality of each stage. `sha256sum --check SHA256SUMS` checks that all files are complete.

{attribution} The networks were trained on these pictures.
"""


def halve(source: Path, target: Path) -> None:
    """Copy a safetensors file, and convert floating-point tensors to half precision."""
    tensors = load_file(source)
    halved = {name: t.half().contiguous() if t.is_floating_point() else t for name, t in tensors.items()}
    for name, tensor in halved.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source}: {name} does not fit in half precision")
    save_file(halved, target, metadata={"format": "pt"})


def portable(build: dict) -> dict:
    """The record of a build without local paths."""
    arguments = {key: value for key, value in build["arguments"].items() if not key.endswith("_dir")}
    stages = {name: {key: stage[key] for key in ("quality", "seconds")} for name, stage in build["stages"].items()}
    return {"arguments": arguments, "stages": stages}


def pack(networks: Path, out: Path, limit_mb: float = LIMIT_MB) -> float:
    """Write the package atomically. Returns its size in MB (10^6 bytes).

    Raises:
        ValueError: the networks are incomplete, do not fit in half precision or are larger than `limit_mb`.
    """
    missing = [name for name in (*FOLDERS, "build.json") if not (networks / name).exists()]
    if missing:
        raise ValueError(
            f"--networks_dir {networks}: no {', '.join(missing)} there; finish the build with `make world`"
        )
    if out.exists() and not (out / "SHA256SUMS").exists():
        raise ValueError(f"--output_dir {out}: the folder exists and has no SHA256SUMS of this command; remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in FOLDERS:
        for source in sorted(path for path in (networks / name).rglob("*") if path.is_file()):
            target = partial / source.relative_to(networks)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".safetensors":
                halve(source, target)
            else:
                shutil.copyfile(source, target)
    build = json.loads((networks / "build.json").read_text(encoding="utf-8"))
    (partial / "build.json").write_text(json.dumps(portable(build), indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(README.format(attribution=ATTRIBUTION), encoding="utf-8")
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(partial)}\n" for path in files]
    (partial / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) / 1e6
    if size > limit_mb:
        shutil.rmtree(partial)
        raise ValueError(
            f"--networks_dir {networks}: {size:.1f} MB in half precision, but {limit_mb:g} MB is the limit"
        )
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return size


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    parser = argparse.ArgumentParser(
        prog=command_name("examples.showcase.pack"), description="Pack trained networks in half precision, with hashes."
    )
    parser.add_argument("--networks_dir", type=Path, required=True, help="The --output_dir of examples.tiny.build.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Output folder.")
    args = parser.parse_args(argv)
    try:
        size = pack(args.networks_dir, args.output_dir)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.output_dir}: {size:.1f} MB")


if __name__ == "__main__":
    main()
