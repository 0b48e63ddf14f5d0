"""Image files whose headers promise more pixels than there is memory, and others that never end."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ovd_d2.data.images import checked_image, image_problems

SIDE = 65_500


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, *more: bytes) -> bytes:
    """A header that says so; few pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def gif(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("P", (16, 16)).save(stream, "GIF")
    content = bytearray(stream.getvalue())
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def real_bomb() -> bytes:
    """4 billion pixels that are all there, in 4 MB."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + SIDE // 8 + 1)
    rows = [compressor.compress(row * 500) for _ in range(SIDE // 500)]
    data = b"".join([*rows, compressor.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "png header": lambda: png(SIDE, SIDE),
    "largest png header": lambda: png(2**31 - 1, 2**31 - 1),
    "jpeg header": lambda: jpeg(SIDE, SIDE),
    "gif header": lambda: gif(SIDE, SIDE),
    "a billion black pixels": real_bomb,
    "text of a png": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
    "profile of a png": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
    "a header alone": lambda: png(64, 64)[:40],
    "a web page": lambda: b"<!DOCTYPE html>" * 100,
    "nothing": lambda: b"",
}
HARMLESS = ("text of a png", "profile of a png")  # where what is large is left alone


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_image_is_one_problem(
    tmp_path: Path, make: Callable[[], bytes], request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "hostile.png"
    path.write_bytes(make())
    entry = {"file_name": str(path), "image_id": 1}
    problems = image_problems([entry], decode=True, source="train.json", progress=False)
    harmless = any(name in request.node.name for name in HARMLESS)
    if problems or not harmless:
        (problem,) = problems
        assert "hostile.png" in str(problem)
        assert len(str(problem)) < 2_000
        with pytest.raises(Exception, match=r"hostile\.png") as caught:
            checked_image(path)
        assert type(caught.value).__module__.startswith("ovd_d2.")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_that_never_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hostile.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    entry = {"file_name": str(path), "image_id": 1}
    (problem,) = image_problems([entry], decode=True, source="train.json", progress=False)
    assert "hostile.png" in str(problem)
