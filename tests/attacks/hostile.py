"""What hostile files are made of, and how a refusal looks."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovd_d2.cache import CacheError, DamagedFileError
from ovd_d2.data.image_faults import ImageError
from ovd_d2.data.json_stream import AnnotationFileError
from ovd_d2.errors import SetupError
from ovd_d2.safe_pickle import PickleFileError, UnsafePickleError

DEEP_JSON = "[" * 100_000 + "]" * 100_000
DIGITS = "7" * 5_000  # more than Python turns into a number
# What a user is shown, without the errors of libraries that only derive from these.
REFUSALS = (
    *(SetupError, AnnotationFileError, ImageError),
    *(CacheError, DamagedFileError, PickleFileError, UnsafePickleError, ValueError),
)
_LONGEST = 8_000  # characters of a message, which may list a dozen problems


class Payload:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def running_pickle(marker: Path, content: Any = None) -> bytes:
    return pickle.dumps({"model": {"weight": Payload(marker)}, "content": content})


def refused(action: Callable[[], object], *named: object) -> str:
    """The message, which is one of ours, of a size to be read, and names what it must."""
    with pytest.raises(REFUSALS) as caught:
        action()
    found, message = type(caught.value), str(caught.value)
    assert found in REFUSALS
    assert len(message) < _LONGEST
    for one in named:
        assert str(one) in message
    return message


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A file of this header and data, whether they fit or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sign_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the JSON of a manifest, as an attacker does: with a checksum that fits."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]  # stays the last key
    change(content)
    sign_text(path, json.dumps({**content, "checksum": ""}, indent=2))


def sign_text(path: Path, text: str) -> None:
    """`text` ends with an empty checksum."""
    body = text.removesuffix('"\n}').encode()
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')
