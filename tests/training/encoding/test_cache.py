"""The cache of latents and embeddings: the same numbers as online, and never those of something else."""

import json
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_add
from tests.support import tiny_world
from tests.support.runs import make_batches, prepare_run
from training.checkpoints.folder_lock import LOCK, FolderInUse
from training.encoding import cache_arrays, cache_writer
from training.encoding.cache import FINGERPRINT
from training.encoding.cache_arrays import CacheError
from training.encoding.embeddings import OnlineEmbeddings
from training.errors import OptionError
from training.models.families import Family, StableDiffusion, StableDiffusionXL
from training.models.networks import load_conditions

ROOT = Path(__file__).parents[3]
CROP = ("--center_crop",)


def cached(folder):
    return (*CROP, "--cache_dir_latents", folder)


@pytest.mark.parametrize("layout", ["sd", "sdxl"])
def test_cached_batch_is_the_online_batch(request, tmp_path, layout):
    """Bit for bit in float32: latents, conditions of student and teacher, c."""
    world = request.getfixturevalue("world" if layout == "sd" else "sdxl_world")
    family = StableDiffusion if layout == "sd" else StableDiffusionXL
    flags = ("--teacher_guidance_scale", 2, "--student_timestep_probabilities", 0.5, 0.5, 0, 0)
    online, stored = (
        make_batches(prepare_run(world, tmp_path / "out", *flags, *extra, family=family), count=3)
        for extra in (CROP, cached(tmp_path / "cache"))
    )

    def leaves(value):
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, dict):
            return [leaf for key in sorted(value) for leaf in leaves(value[key])]
        if isinstance(value, tuple):
            return [leaf for item in value for leaf in leaves(item)]
        return leaves(vars(value)) if hasattr(value, "__dict__") else []

    for a, b in zip(online, stored):
        pairs = list(zip(leaves(a), leaves(b), strict=True))
        assert len(pairs) > 10
        # Encoders batch differently while the cache is made, which moves the last bit.
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)


def test_no_encoder_runs_once_the_cache_is_there(world, tmp_path, monkeypatch):
    train_add.main(tiny_world.flags(world, tmp_path / "a", *cached(tmp_path / "cache")))
    monkeypatch.setattr(StableDiffusion, "embed", lambda *a: pytest.fail("a caption was encoded"))
    monkeypatch.setattr("training.models.networks.load_conditions", lambda *a: pytest.fail("c's encoders were loaded"))
    monkeypatch.setattr("diffusers.AutoencoderKL.encode", lambda *a: pytest.fail("an image was encoded"))
    train_add.main(tiny_world.flags(world, tmp_path / "b", *cached(tmp_path / "cache")))
    a, b = (load_file(tmp_path / n / "unet/diffusion_pytorch_model.safetensors") for n in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_validation_works_beside_a_cache(world, tmp_path):
    """The text encoders wait in main memory, and are there when a prompt is typed."""
    for name in "ab":
        train_add.main(
            tiny_world.flags(world, tmp_path / name, *cached(tmp_path / "c"), "--validation_prompts", "one more")
        )
        assert (tmp_path / name / "validation/step-2.png").is_file()


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        (("--resolution", 40), "resolution: 32 -> 40"),
        (("--mixed_precision", "bf16"), 'precision: "no" -> "bf16"'),
        (("--teacher_guidance_scale", 2), r"prompts: \[\] -> "),
        (("--max_train_samples", 8), "samples: 24 -> 8"),
        (("--discriminator_text_model", "none"), "c_text: .* -> null"),
        (("--train_data_dir", "{data}"), "data: "),
        (("--pretrained_teacher_model", "{vae}"), "vae: "),
        (("--pretrained_teacher_model", "{scaling}"), "scaling_factor: 0.18215 -> 0.5"),
        (("--pretrained_teacher_model", "{text}"), "student.text_encoder: "),
    ],
)
def test_stale_cache_is_refused_before_anything_is_loaded(world, tmp_path, extra, what, monkeypatch):
    import shutil

    prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    places = {name: tmp_path / name for name in ("data", "vae", "scaling", "text")}
    tiny_world.write_images(places["data"], 20)
    for name in ("vae", "scaling", "text"):
        shutil.copytree(world / "teacher", places[name])
    flip_last_bit(places["vae"] / "vae/diffusion_pytorch_model.safetensors")
    flip_last_bit(places["text"] / "text_encoder/model.safetensors")
    config = places["scaling"] / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    extra = [str(part).format(**places) for part in extra]
    AcceleratorState._reset_state(reset_partial_state=True)  # another precision needs it
    for part in ("load_unet", "load_vae", "load_text_encoders"):
        monkeypatch.setattr(StableDiffusion, part, lambda *a: pytest.fail("weights were loaded"))
    with pytest.raises(OptionError, match=f"--cache_dir_latents got .*{what}.*Give another folder"):
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"), *extra)


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("part", ["latents", "c_text"])
def test_interrupted_cache_goes_on_where_it_was(world, tmp_path, monkeypatch, part):
    """Stopped after two batches of images or of captions: what was encoded is not encoded again, and the whole is the
    one that was never interrupted, byte for byte."""
    monkeypatch.setattr(cache_writer, "BATCH", 2)
    encoded, original = [], getattr(OnlineEmbeddings, part)

    def encode(self, *args, stop=None):
        if stop is not None and len(encoded) == stop:
            raise Stopped
        encoded.append(len(args[-1]))
        return original(self, *args)

    prepare_run(world, tmp_path / "out", *cached(tmp_path / "whole"))
    monkeypatch.setattr(OnlineEmbeddings, part, partialmethod(encode, stop=3))  # the first one is for the shapes
    with pytest.raises(Stopped):
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    assert not (tmp_path / "cache" / FINGERPRINT).exists()
    assert encoded == [1, 2, 2]
    encoded.clear()
    monkeypatch.setattr(OnlineEmbeddings, part, partialmethod(encode))
    prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    assert encoded == [2] * ((12 if part == "latents" else 4) - 2)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    files.remove(Path(LOCK))
    assert len(files) == 12  # five arrays with their checksums, the captions, the fingerprint
    for file in files:
        assert (tmp_path / "cache" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_unfinished_cache_of_something_else_is_refused(world, tmp_path, monkeypatch):
    """Another resolution, or a fingerprint that cannot be read: nothing in the folder is changed."""

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(OnlineEmbeddings, "c_text", stop)
        with pytest.raises(Stopped):
            prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    part, array = tmp_path / "cache" / cache_writer.UNFINISHED, tmp_path / "cache/images/mean.npy"
    text = part.read_text()
    array.write_bytes(b"old")
    part.write_text(text.replace('"resolution": 32', '"resolution": 64'))
    with pytest.raises(OptionError, match="resolution: 64 -> 32"):
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    part.write_text(text[:40])
    with pytest.raises(OptionError, match=r"not empty and not a cache \(captions.*nothing in it was changed"):
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    assert array.read_bytes() == b"old"


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fingerprint", [None, "fingerprint.json", "fingerprint.json.part"])
def test_folder_of_something_else_is_refused_and_left_alone(world, tmp_path, fingerprint):
    """A folder whose parts are named as a cache's, even with a file of the fingerprint's name."""
    folder = tmp_path / "mydata"
    for part in ("images", "captions"):
        (folder / part).mkdir(parents=True)
        for i in range(12):
            (folder / part / f"{i}.npy").write_bytes(b"mine")
    if fingerprint:
        (folder / fingerprint).write_text('{"whose": "mine"}')
    before = content(folder)
    with pytest.raises(OptionError, match=r"--cache_dir_latents got '.*mydata', which is not empty and not a cache"):
        prepare_run(world, tmp_path / "out", *cached(folder))
    assert content(folder) == before
    with pytest.raises(OptionError, match="this is a file; give a folder"):
        cache_writer.check_cache_folder(folder / "images" / "1.npy")


def test_empty_folder_may_become_a_cache(world, tmp_path):
    (tmp_path / "cache").mkdir()
    prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    assert (tmp_path / "cache" / FINGERPRINT).is_file()


def test_cache_that_another_run_is_making_is_refused(world, tmp_path):
    """A new one is made by one run at a time; a finished one is read by as many as like."""
    code = (
        "import sys; from training.checkpoints.folder_lock import lock_folder\n"
        "held = lock_folder(sys.argv[1], 'x'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        other.stdout.readline()
        with pytest.raises(FolderInUse, match=r"--cache_dir_latents got .*another process is writing into this folder"):
            prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [LOCK]
        other.communicate()
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        other.stdout.readline()
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    finally:
        other.communicate()


@pytest.mark.parametrize("is_small", [True, False])
def test_damage_is_noticed(world, tmp_path, monkeypatch, is_small):
    """Zeroed bytes, when a small cache is opened and when a row of a large one is read; cut files at once."""
    monkeypatch.setattr(cache_arrays, "CHECKED_WHOLE", 2**30 if is_small else 0)
    prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    file = tmp_path / "cache/images/mean.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:128] + bytes(64) + whole[192:])  # in row 0
    damaged = pytest.raises(CacheError, match=r"mean\.npy is damaged: row 0 does not match its checksum\. Remove")
    if is_small:
        with damaged:
            prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
    else:
        prepared = prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))
        prepared.embeddings.latents(None, torch.tensor([1, 2]))
        with damaged:
            prepared.embeddings.latents(None, torch.tensor([1, 0]))
    file.write_bytes(whole[:-5])
    with pytest.raises(CacheError, match=r"mean\.npy is damaged"):
        prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"))


def test_workers_read_the_images(world, tmp_path):
    """The same cache, whoever reads."""
    for name, workers in (("a", 0), ("b", 2)):
        prepare_run(world, tmp_path / "out", *cached(tmp_path / name), "--dataloader_num_workers", workers)
    for file in ("mean.npy", "std.npy", "c.npy"):
        assert (tmp_path / "a/images" / file).read_bytes() == (tmp_path / "b/images" / file).read_bytes()


def test_damaged_image_has_the_latents_of_its_replacement(world, tmp_path):
    """Sample 3's file is no image: training asks for sample 4 in its place, and finds it."""
    import shutil

    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    (data / "003.png").write_bytes(b"not a picture")
    flags = ("--train_data_dir", data)
    online, stored = (
        make_batches(prepare_run(world, tmp_path / "out", *flags, *extra), count=6)
        for extra in (CROP, cached(tmp_path / "cache"))
    )
    for a, b in zip(online, stored):
        assert torch.allclose(a.z0_moments[0], b.z0_moments[0], atol=1e-5)


def test_conditions_that_are_off_are_not_in_the_cache(world, tmp_path):
    off = ("--discriminator_text_model", "none", "--discriminator_image_model", "none")
    prepared = prepare_run(world, tmp_path / "out", *cached(tmp_path / "cache"), *off)
    assert prepared.embeddings.condition_dim == 0
    assert make_batches(prepared)[0].c is None
    assert load_conditions(prepared.options, prepared.accelerator) == (None, None)
    assert isinstance(prepared.family, Family)
