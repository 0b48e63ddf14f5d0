from __future__ import annotations

import json
import logging
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageFile

from ovd_d2.data import image_memory, images
from ovd_d2.data.augmentation import Resize
from ovd_d2.data.image_memory import default_memory
from ovd_d2.data.images import (
    ImageError,
    check_decoding,
    checked_image,
    image_problems,
    load_image,
    read_header,
)
from ovd_d2.data.problems import Problem

GREEN, WHITE = (0, 255, 0), (255, 255, 255)


def entry(path: Path, height: int = 3, width: int = 5) -> dict[str, Any]:
    return {"file_name": str(path), "image_id": 7, "height": height, "width": width}


def small_image(height: int = 3, width: int = 5) -> Image.Image:
    """White, its first pixel green."""
    image = Image.new("RGB", (width, height), WHITE)
    image.putpixel((0, 0), GREEN)
    return image


def problem_of(item: dict[str, Any]) -> str:
    """What both the look at the header and the reading find."""
    with pytest.raises(ImageError) as caught:
        load_image(item)
    (problem,) = problems_of([item])
    assert problem.found == caught.value.fault.found
    assert problem.first == f"{item['file_name']}, image id 7"
    return str(caught.value)


def problems_of(entries: list[dict[str, Any]], **options: Any) -> list[Problem]:
    defaults: dict[str, Any] = {"decode": False, "source": "train.json", "progress": False}
    return image_problems(entries, **{**defaults, **options})


def png(
    height: int,
    width: int,
    *,
    depth: int = 8,
    colour: int = 2,
    rows: bytes = b"",
    late: tuple[bytes, bytes] | None = None,
) -> bytes:
    """A PNG of any header; colour 0 is grey, 2 RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows))]
    chunks += [late] if late else []
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


def turned_exif() -> Image.Exif:
    """A quarter turn."""
    exif = Image.Exif()
    exif[274] = 6
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_any_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("this Pillow cannot read the YCbCr TIFF that it writes")
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    grey = mode in ("1", "L", "LA")
    (Image.new("RGB", (5, 3), WHITE) if grey else small_image()).convert(mode).save(path)
    image = load_image(entry(path))
    assert image.shape == (3, 5, 3)
    assert image.dtype == np.uint8
    assert image[2, 4].tolist() == list(WHITE)
    if not grey:
        np.testing.assert_allclose(image[0, 0], GREEN, atol=2)  # YCbCr rounds
    assert problems_of([entry(path)], decode=True) == []


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
    assert "Pillow's mode I;16" in message and "convert it to 8 bits" in message
    with pytest.raises(ImageError, match=r"^.*x\.png is grey with more than 8 bits"):
        checked_image(path)


def test_16_bit_colour_loses_its_low_bytes(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">15H", *[40_000] * 15) for _ in range(3))
    (tmp_path / "x.png").write_bytes(png(3, 5, depth=16, rows=rows))
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
    small_image().save(path, exif=exif)
    image = load_image(entry(path, *shape))
    assert image.shape == (*shape, 3)
    assert image[corner].tolist() == list(GREEN)
    assert (image == read_image(str(path), "RGB")).all()
    assert problems_of([entry(path, *shape)], decode=True) == []


def test_a_size_of_before_the_turn_is_refused(tmp_path: Path) -> None:
    small_image().save(tmp_path / "x.png", exif=turned_exif())
    message = problem_of(entry(tmp_path / "x.png", 3, 5))
    assert "is turned by its EXIF orientation, which Detectron2 applies" in message
    assert "5 x 3 (height x width, once its EXIF orientation is applied), annotated as" in message
    assert "exchange height and width" in message and "exiftool" in message
    (problem,) = problems_of([entry(tmp_path / "x.png", 3, 5)])
    assert problem.key == "images[].height, width"
    assert "1 of 1 images are turned by their EXIF orientation" in str(problem)


def test_an_orientation_behind_the_pixels_counts_as_in_training(tmp_path: Path) -> None:
    body = turned_exif().tobytes().removeprefix(b"Exif\0\0")
    rows = b"".join(b"\0" + b"\7" * 15 for _ in range(3))
    (tmp_path / "x.png").write_bytes(png(3, 5, rows=rows, late=(b"eXIf", body)))
    assert read_image(str(tmp_path / "x.png"), "RGB").shape == (5, 3, 3)
    assert read_header(tmp_path / "x.png")[:2] == (5, 3)
    assert "is turned by" in problem_of(entry(tmp_path / "x.png", 3, 5))


def test_height_and_width_in_the_wrong_order(tmp_path: Path) -> None:
    small_image().save(tmp_path / "x.png")
    message = problem_of(entry(tmp_path / "x.png", 5, 3))
    assert "3 x 5 (height x width: the two are exchanged), annotated as 5 x 3" in message


def test_damaged_exif_data_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0garbage")
    assert load_image(entry(tmp_path / "x.jpg")).shape == (3, 5, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 20_000)])
def test_extreme_sizes(tmp_path: Path, height: int, width: int) -> None:
    small_image(height, width).save(tmp_path / "x.png")
    assert load_image(entry(tmp_path / "x.png", height, width)).shape == (height, width, 3)


def test_a_decompression_bomb(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(60_000, 60_000))
    message = problem_of(entry(tmp_path / "x.png", 60_000, 60_000))
    assert "x.png is too large (Image size (3600000000 pixels)" in message
    assert "MAX_IMAGE_PIXELS" in message


def test_between_pillows_warning_and_its_limit_an_image_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_image(30, 30).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problems_of([entry(tmp_path / "x.png", 30, 30)], decode=True) == []


def test_missing_and_garbage(tmp_path: Path) -> None:
    message = problem_of(entry(tmp_path / "x.png"))
    assert "x.png is missing (no such file)" in message
    (problem,) = problems_of([entry(tmp_path / "x.png")])
    assert "image_root" in problem.fix and "DETECTRON2_DATASETS" in problem.fix
    message = problem_of(entry(tmp_path / "picturs" / "sub" / "x.png"))
    assert f"is missing (no folder {tmp_path / 'picturs'})" in message
    (tmp_path / "y.png").write_bytes(b"<!DOCTYPE html><html>")
    message = problem_of(entry(tmp_path / "y.png"))
    assert "y.png cannot be read" in message and "begins with b'<!DOCTYPE html>" in message
    (tmp_path / "z.png").write_bytes(b"")
    assert "z.png is empty (0 bytes)" in problem_of(entry(tmp_path / "z.png"))


@pytest.mark.parametrize("name", ["x.JPG", "X.jpg", "sub\\x.jpg"])
def test_a_missing_file_that_is_there_under_another_spelling(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    there = tmp_path / ("sub/x.jpg" if "sub" in name else "x.jpg")
    small_image().save(there)
    assert f"no such file, but {there} is there" in problem_of(entry(tmp_path / name))


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    assert "x.png is not a file (a folder)" in problem_of(entry(tmp_path / "x.png"))
    os.mkfifo(tmp_path / "y.png")  # opening it would wait for ever
    assert "y.png is not a file (a pipe" in problem_of(entry(tmp_path / "y.png"))
    (tmp_path / "z.png").symlink_to(tmp_path / "gone.png")
    assert "z.png is missing" in problem_of(entry(tmp_path / "z.png"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied"), "may not be read (Permission denied)"),
        (OSError(5, "Input/output error"), "cannot be opened"),
        (MemoryError(), "is too large (MemoryError)"),
    ],
)
def test_files_that_do_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    small_image().save(tmp_path / "x.png")
    monkeypatch.setattr(images.PathManager, "open", fail)
    assert said in problem_of(entry(tmp_path / "x.png"))


def test_long_and_thin(tmp_path: Path) -> None:
    small_image(4000, 4).save(tmp_path / "x.png")
    item = entry(tmp_path / "x.png", 4000, 4)
    assert problems_of([item]) == problems_of([item], resize=Resize(800, 1333)) == []
    (problem,) = problems_of([item], resize=Resize(128, 256))
    assert "would have no pixel left" in str(problem)
    assert problem.found.startswith("4000 x 4 (height x width) becomes 256 x 0")


def noise(path: Path, **options: Any) -> bytes:
    """Writes 24 x 32 pixels of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def test_truncation_shows_when_the_image_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(noise(path)[:600])
    assert problems_of([entry(path, 24, 32)]) == []
    (problem,) = problems_of([entry(path, 24, 32)], decode=True)
    assert "1 of 1 images cannot be read: damaged or cut short" in str(problem)
    with pytest.raises(
        ImageError, match=r"image 7: .*x\.png cannot be read .*fetch the file again"
    ):
        load_image(entry(path, 24, 32))


def test_truncation_shows_whatever_another_library_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(noise(path)[:-200])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(problems_of([entry(path, 24, 32)], decode=True)) == 1
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("webp", {}), ("bmp", {})],
)
def test_every_cut_is_judged_as_by_training(
    tmp_path: Path, suffix: str, options: dict[str, Any]
) -> None:
    path = tmp_path / f"x.{suffix}"
    whole = noise(path, **options)
    verdicts = []
    for length in range(1, len(whole) + 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        verdicts.append((is_sound(check_decoding, path), is_sound(read_image, str(path), "RGB")))
    path.write_bytes(whole)
    assert is_sound(check_decoding, path)
    assert all(mine == training for mine, training in verdicts)
    assert not verdicts[len(verdicts) // 2][0]


def is_sound(read: Any, *args: Any) -> bool:
    try:
        read(*args)
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def test_problems_are_counted_by_kind_and_the_first_is_named(tmp_path: Path) -> None:
    entries = [{**entry(tmp_path / f"{k}.png"), "image_id": k} for k in range(9)]
    for one in entries[2:]:
        small_image().save(one["file_name"])
    entries[8]["height"] = 4
    missing, size = problems_of(entries)
    assert missing.file == "train.json"
    assert (missing.count, missing.total) == (2, 9)
    assert missing.first == f"{tmp_path / '0.png'}, image id 0"
    assert missing.found == f"no such file (also {tmp_path / '1.png'})"
    assert size.first.endswith("image id 8")
    assert size.found == "3 x 5 (height x width), annotated as 4 x 5"


def test_one_file_of_two_images_and_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines \u732b.png"
    small_image().save(path)
    assert problems_of([entry(path), {**entry(path), "image_id": 8}]) == []
    path.unlink()
    (problem,) = problems_of([entry(path), {**entry(path), "image_id": 8}])
    assert problem.count == 2
    assert "\n" not in str(problem)


# the memory


@pytest.fixture
def many(tmp_path: Path) -> list[dict[str, Any]]:
    """More than go without worker processes; the fifth is cut short."""
    data = noise(tmp_path / "0.png")
    for k in range(50):
        (tmp_path / f"{k}.png").write_bytes(data[:600] if k == 5 else data)
    return [{**entry(tmp_path / f"{k}.png", 24, 32), "image_id": k} for k in range(50)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read from now on, in this process."""
    seen: list[str] = []
    for name in ("read_header", "check_decoding"):
        monkeypatch.setattr(images, name, spy(getattr(images, name), seen))
    monkeypatch.setattr(images, "_ALONE", 1_000)
    return seen


def spy(function: Any, seen: list[str]) -> Any:
    def call(path: str) -> Any:
        seen.append(f"{function.__name__} {os.path.basename(path)}")
        return function(path)

    return call


def test_worker_processes_find_the_same(many: list[dict[str, Any]]) -> None:
    (problem,) = problems_of(many, decode=True)
    assert problem.first.endswith("5.png, image id 5") and problem.count == 1


def test_a_second_run_reads_only_what_was_not_sound(
    tmp_path: Path, many: list[dict[str, Any]], reads: list[str]
) -> None:
    memory = tmp_path / "caches" / "sound.json"
    first = problems_of(many, memory=memory, decode=True)
    assert len(reads) == 100
    reads.clear()
    assert problems_of(many, memory=memory, decode=True) == first
    assert reads == ["check_decoding 5.png"]  # its header is known to be sound
    reads.clear()
    (problem,) = problems_of([{**many[0], "height": 9}], memory=memory)
    assert problem.found == "24 x 32 (height x width), annotated as 9 x 32"
    assert reads == []


def test_headers_alone_are_remembered_as_such(
    tmp_path: Path, many: list[dict[str, Any]], reads: list[str]
) -> None:
    assert problems_of(many, memory=tmp_path / "sound.json") == []
    reads.clear()
    assert len(problems_of(many, memory=tmp_path / "sound.json", decode=True)) == 1
    assert reads == [f"check_decoding {k}.png" for k in range(50)]


def test_a_changed_file_is_read_again(
    tmp_path: Path, many: list[dict[str, Any]], reads: list[str]
) -> None:
    memory = tmp_path / "sound.json"
    problems_of(many, memory=memory, decode=True)
    reads.clear()
    path = Path(many[1]["file_name"])
    data = path.read_bytes()
    path.write_bytes(data[:600] + bytes(len(data) - 600))  # of the same size
    os.utime(path, ns=(1, 1))
    (problem,) = problems_of(many, memory=memory, decode=True)
    assert problem.count == 2
    assert "read_header 1.png" in reads and len(reads) == 3


def test_an_interrupted_run_keeps_what_it_has_done(
    tmp_path: Path, many: list[dict[str, Any]], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "sound.json"
    real = images.check_decoding

    def stop(path: str) -> None:
        if path.endswith("30.png"):
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "check_decoding", stop)
        with pytest.raises(KeyboardInterrupt):
            problems_of(many, memory=memory, decode=True)
    reads.clear()
    problems_of(many, memory=memory, decode=True)
    assert reads == ["check_decoding 5.png", *(f"check_decoding {k}.png" for k in range(30, 50))]


def test_a_killed_run_loses_seconds(
    tmp_path: Path, many: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_memory, "_PERIOD", 0.0)
    monkeypatch.setattr(image_memory, "_SHARE", 0.0)
    memory = image_memory.ImageMemory(tmp_path / "sound.json")
    sound = image_memory.Sound(1, 2, 3, 4, 0, 1)
    memory.add("/a.png", sound)  # saved at once; nothing else is called
    status = os.stat_result((0, 0, 0, 0, 0, 0, 1, 0, 0, 0), {"st_mtime_ns": 2})
    assert image_memory.ImageMemory(tmp_path / "sound.json").find("/a.png", status) == sound


@pytest.mark.parametrize(
    "content",
    [
        '{"ovd_d2_sound_images": 1,"files": {"/a',
        '{"ovd_d2_sound_images": 1}',
        "",
        '{"ovd_d2_sound_images": 1,"files": [1]}',
    ],
)
def test_a_damaged_memory_is_made_anew(
    tmp_path: Path, many: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    memory = tmp_path / "sound.json"
    memory.write_text(content)
    with caplog.at_level(logging.WARNING, "ovd_d2"):
        assert problems_of(many, memory=memory) == []
    assert "sound.json is damaged and is made anew" in caplog.text
    assert len(json.loads(memory.read_text())["files"]) == 50


@pytest.mark.parametrize("rows", [[1], "x", [1, 2, 3, 4, 5, 6.5], [1, 2, 3, 4, 5, True], None])
def test_damaged_rows_are_read_again(
    tmp_path: Path, many: list[dict[str, Any]], rows: object
) -> None:
    memory = tmp_path / "sound.json"
    files = {one["file_name"]: rows for one in many}
    memory.write_text(json.dumps({"ovd_d2_sound_images": 1, "files": files}))
    text = memory.read_text().replace(', "files"', ',"files"')
    memory.write_text(text)
    assert len(problems_of(many, memory=memory, decode=True)) == 1


@pytest.mark.parametrize("content", [b"my notes", b"\xff\xfe{", b'{"categories": []}'])
def test_another_programs_file_is_left_alone(
    tmp_path: Path, many: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    memory = tmp_path / "notes.json"
    memory.write_bytes(content)
    with caplog.at_level(logging.WARNING, "ovd_d2"):
        assert problems_of(many, memory=memory) == []
    assert caplog.text.count("is another program's file") == 1
    assert memory.read_bytes() == content


def test_a_place_that_cannot_be_written(
    tmp_path: Path, many: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "ovd_d2"):
        assert problems_of(many, memory=tmp_path / "file" / "sound.json") == []
    assert len(caplog.records) == 1 and "are not remembered" in caplog.text


def test_runs_share_a_memory(tmp_path: Path, many: list[dict[str, Any]], reads: list[str]) -> None:
    path = tmp_path / "sound.json"
    one, other = image_memory.ImageMemory(path), image_memory.ImageMemory(path)
    one.add("/one.png", image_memory.Sound(1, 2, 3, 4, 0, 1))
    other.add("/other.png", image_memory.Sound(1, 2, 3, 4, 0, 1))
    one.save()
    other.save()
    assert set(json.loads(path.read_text())["files"]) == {"/one.png", "/other.png"}


def test_the_default_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_memory() == tmp_path / "ovd_d2" / "images" / "sound.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_memory() == tmp_path / ".cache" / "ovd_d2" / "images" / "sound.json"
