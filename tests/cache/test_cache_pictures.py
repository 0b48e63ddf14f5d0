from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from ovd_d2.cache import CacheError
from ovd_d2.cache.pictures import header_problems, load_image

GREEN, WHITE = (0, 255, 0), (255, 255, 255)


def entry(path: Path, height: int = 3, width: int = 5) -> dict[str, Any]:
    return {"file_name": str(path), "image_id": 7, "height": height, "width": width}


def picture(height: int = 3, width: int = 5) -> Image.Image:
    """White, its first pixel green."""
    image = Image.new("RGB", (width, height), WHITE)
    image.putpixel((0, 0), GREEN)
    return image


def problem_of(item: dict[str, Any]) -> str:
    """What both the look at the header and the reading say."""
    with pytest.raises(CacheError) as caught:
        load_image(item)
    assert header_problems([item], progress=False) == [str(caught.value)]
    return str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_any_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    grey = mode in ("1", "L", "LA")
    (Image.new("RGB", (5, 3), WHITE) if grey else picture()).convert(mode).save(path)
    image = load_image(entry(path))
    assert image.shape == (3, 5, 3)
    assert image.dtype == np.uint8
    assert image[2, 4].tolist() == list(WHITE)
    if not grey:
        np.testing.assert_allclose(image[0, 0], GREEN, atol=2)  # YCbCr rounds
    assert header_problems([entry(path)], progress=False) == []


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), GREEN).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    image = load_image(entry(tmp_path / "x.jpg", 16, 16))
    np.testing.assert_allclose(image[8, 8], GREEN, atol=8)


def test_transparency_is_dropped_as_in_training(tmp_path: Path) -> None:
    Image.new("RGBA", (5, 3), (*GREEN, 0)).save(tmp_path / "x.png")
    assert load_image(entry(tmp_path / "x.png"))[1, 1].tolist() == list(GREEN)


def test_16_bit_grey_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((3, 5), 40_000, np.uint16)).save(path)
    assert read_image(str(path), "RGB").min() == 255  # what training would see
    message = problem_of(entry(path))
    assert message.startswith(f"image 7: {path} is grey with more than 8 bits")
    assert "convert it to 8 bits" in message


def test_16_bit_colour_loses_its_low_bytes(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">15H", *[40_000] * 15) for _ in range(3))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 3, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "x.png").write_bytes(data)
    assert load_image(entry(tmp_path / "x.png"))[0, 0].tolist() == [40_000 >> 8] * 3


@pytest.mark.parametrize(
    ("orientation", "shape", "corner"),
    [(1, (3, 5), (0, 0)), (3, (3, 5), (2, 4)), (6, (5, 3), (0, 2)), (8, (5, 3), (4, 0))],
)
def test_the_exif_orientation_is_applied_as_in_training(
    tmp_path: Path, orientation: int, shape: tuple[int, int], corner: tuple[int, int]
) -> None:
    path = tmp_path / "x.png"
    exif = Image.Exif()
    exif[274] = orientation
    picture().save(path, exif=exif)
    image = load_image(entry(path, *shape))
    assert image.shape == (*shape, 3)
    assert image[corner].tolist() == list(GREEN)
    assert (image == read_image(str(path), "RGB")).all()
    assert header_problems([entry(path, *shape)], progress=False) == []


def test_a_size_of_before_the_turn_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture().save(tmp_path / "x.png", exif=exif)
    message = problem_of(entry(tmp_path / "x.png", 3, 5))
    assert "is 5 x 3 (height x width, once its EXIF orientation is applied" in message
    assert "the data set says 3 x 5" in message


def test_damaged_exif_data_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0garbage")
    assert load_image(entry(tmp_path / "x.jpg")).shape == (3, 5, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 20_000)])
def test_extreme_sizes(tmp_path: Path, height: int, width: int) -> None:
    picture(height, width).save(tmp_path / "x.png")
    assert load_image(entry(tmp_path / "x.png", height, width)).shape == (height, width, 3)


def test_a_picture_beyond_pillows_limit_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(30, 30).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # it refuses twice as many
    message = problem_of(entry(tmp_path / "x.png", 30, 30))
    assert "is too large" in message
    assert "MAX_IMAGE_PIXELS" in message


def test_missing_and_garbage(tmp_path: Path) -> None:
    assert "x.png is missing (is DETECTRON2_DATASETS set" in problem_of(entry(tmp_path / "x.png"))
    (tmp_path / "y.png").write_bytes(b"x" * 99)
    assert "y.png cannot be read" in problem_of(entry(tmp_path / "y.png"))


def test_truncation_shows_when_the_picture_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:600])
    assert header_problems([entry(path, 24, 32)], progress=False) == []
    with pytest.raises(
        CacheError, match=r"image 7: .*x\.png cannot be read .*fetch the file again"
    ):
        load_image(entry(path, 24, 32))
