"""Decoding of real files of every kind, and the geometry of resize, flip and crop."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.images import decode_image, flip_and_crop, resize_short_side, to_pixels


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=24, height=16):
    """Every pixel says where it is: red = x, green = y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([8 * x, 8 * y, 0 * x], -1).astype(np.uint8))


def decoded(data):
    image = decode_image({"bytes": data, "path": None})
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_formats(kind):
    """The usual formats give the pixels that went in (lossless where they can be)."""
    options = {"lossless": True} if kind == "WEBP" else {}
    assert abs(decoded(encode(photo(), kind, **options)) - np.asarray(photo())).max() <= (8 if kind == "GIF" else 0)


def test_cell_may_be_bytes_dict_path_or_url(tmp_path):
    """All forms in which a column holds an image, and a name with the wrong extension."""
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(photo(), "PNG"))
    cells = [path.read_bytes(), str(path), f"file://{path}", {"bytes": None, "path": str(path)}]
    for cell in cells:
        assert np.array_equal(np.asarray(decode_image(cell)), np.asarray(photo()))
    with pytest.raises(ValueError, match="int"):
        decode_image(3)
    with pytest.raises(ValueError, match="NoneType"):
        decode_image(None)


def test_cmyk():
    """CMYK is converted, not read as if its four channels were others: 100 % cyan is (0, 255, 255)."""
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert abs(decoded(encode(cyan, "JPEG", quality=100)) - [0, 255, 255]).max() <= 3


def test_16_bit_greyscale():
    """65535 is white, 0 black, 32896 = 128 * 257 middle grey; convert() alone would give white for all above 255."""
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(ramp), "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    assert decoded(data)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_on_white(mode):
    """Transparent pixels become white, half transparent black ones middle grey, opaque ones stay."""
    image = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [0, 0, 0, 255]]], dtype=np.uint8))
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8), mode="P")
        image.putpalette([0, 0, 0, 20, 30, 40])
        assert decoded(encode(image, "PNG", transparency=0))[0].tolist() == [[255] * 3, [20, 30, 40], [20, 30, 40]]
        return
    pixels = decoded(encode(image.convert(mode), "PNG"))
    assert pixels[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


def test_exif_orientation():
    """Orientation 6 (a phone held upright) is applied: the picture comes out rotated by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(encode(photo(), "PNG", exif=exif))
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(photo()), -1))


def damaged_files():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg, png = encode(noise, "JPEG"), encode(noise, "PNG")
    middle = len(png) // 2
    return {
        "empty": b"",
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": png[:middle],
        "corrupt png": png[:middle] + bytes(40) + png[middle + 40 :],
        "corrupt jpeg header": b"\xff\xd8\xff\xdb" + bytes(4) + jpeg[8:],
        "text": b"<html>404 not found</html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
        "a format that is not photographs": encode(noise, "PCX"),
        "float": encode(Image.new("F", (8, 8), 0.5), "TIFF"),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_damaged_files_raise(kind):
    """None of them yields an image, whole or grey."""
    with pytest.raises(Exception, match=r"."):
        decode_image(damaged_files()[kind])


def test_decompression_bomb(monkeypatch):
    """A small file of more pixels than Pillow's limit is refused, not only beyond twice the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decoded(encode(Image.new("RGB", (40, 25)), "PNG")).shape == (25, 40, 3)
    for side in (26, 100):
        with pytest.raises((Image.DecompressionBombWarning, Image.DecompressionBombError), match="exceeds limit"):
            decode_image(encode(Image.new("RGB", (40, side)), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(encode(photo(), "PNG"))


@pytest.mark.parametrize(("size", "expected"), [((60, 40), (30, 20)), ((41, 67), (20, 32)), ((20, 20), (20, 20))])
def test_short_side(size, expected):
    """The short side is exactly the resolution, the long one rounded down: floor(20 * 67 / 41) = 32."""
    assert resize_short_side(Image.new("RGB", size), 20).size == expected


def test_extreme_aspect_ratio_is_refused():
    """1 x 20000 pixels at 512 would become 5 gigapixels."""
    with pytest.raises(ValueError, match="too long"):
        resize_short_side(Image.new("RGB", (1, 20000)), 512)


def test_resize_is_lanczos():
    """Lanczos overshoots at an edge, which no bilinear or box filter does: the pixels left of a step go below it."""
    step = np.full((8, 8, 3), 100, dtype=np.uint8)
    step[:, 4:] = 200
    row = np.asarray(resize_short_side(Image.fromarray(step), 16))[8, :, 0].astype(int)
    assert row.min() < 100
    assert row.max() > 200


@pytest.mark.parametrize(("width", "corner"), [(24, (0, 4)), (17, (0, 0)), (19, (0, 2))])
def test_center_crop(width, corner):
    """The corner is round((long - short) / 2), half to even as Python and torchvision round; the pixels are its."""
    square, got = flip_and_crop(photo(width), 16, torch.Generator(), center_crop=True, random_flip=False)
    assert got == corner
    assert np.asarray(square)[0, 0].tolist() == [8 * corner[1], 8 * corner[0], 0]
    assert square.size == (16, 16)


def test_random_crop_and_flip():
    """Corners cover every place evenly, half of the images are mirrored, and the corner is that in the mirrored one."""
    generator = torch.Generator().manual_seed(0)
    corners, flips = [], 0
    for _ in range(900):
        square, (y, x) = flip_and_crop(photo(), 16, generator, center_crop=False, random_flip=True)
        red = np.asarray(square)[0, :, 0] // 8
        flipped = red[0] > red[1]
        assert red[0] == (23 - x if flipped else x)
        corners.append((y, x))
        flips += flipped
    assert set(corners) == {(0, x) for x in range(9)}
    assert min(corners.count((0, x)) for x in range(9)) > 60  # 100 each; a standard deviation is 9
    assert 390 < flips < 510


def test_pixels_range():
    """0 -> -1 and 255 -> 1 exactly, channels first, float32."""
    image = Image.new("RGB", (3, 2), (0, 255, 51))
    pixels = to_pixels(image)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 2, 3)
    assert pixels[:, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
    assert pixels.amin() == -1
    assert pixels.amax() == 1
