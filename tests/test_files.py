from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ovd_d2 import files
from ovd_d2.files import (
    atomic_write,
    atomic_write_json,
    fingerprint_json,
    free_bytes,
    readable_bytes,
    sha256_file,
)


def test_atomic_write_replaces_the_target_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result.txt"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary != target
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["result.txt"]


def test_an_error_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]


def test_data_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorded(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object) -> object:
            calls.append(name)
            return real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name))
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_bytes(b"1")
    assert calls == ["fsync", "replace", "fsync"]  # file, rename, folder


def test_a_library_may_replace_the_temporary_itself(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with atomic_write(target) as temporary:
        temporary.unlink()
        temporary.write_bytes(b"again")
    assert target.read_bytes() == b"again"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "x") as temporary:
            temporary.write_bytes(b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_a_folder_that_refuses_fsync_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "fsync", refuse)
    files.flush_folder(tmp_path)


def test_json_round_trip_and_refusal_of_nan(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    atomic_write_json(path, {"name": "ä", "values": [1, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ä", "values": [1, 2.5]}
    with pytest.raises(ValueError):
        atomic_write_json(path, {"values": [float("nan")]})
    assert json.loads(path.read_text(encoding="utf-8"))["values"] == [1, 2.5]


@pytest.mark.parametrize("content", [b"", b"abc", b"x" * 2_500_000])
def test_sha256_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_fingerprint_is_canonical() -> None:
    # echo -n '{"a":[1,2],"b":"\u00e4"}' | sha256sum
    expected = hashlib.sha256(rb'{"a":[1,2],"b":"\u00e4"}').hexdigest()[:16]
    assert fingerprint_json({"b": "ä", "a": (1, 2)}) == expected
    assert fingerprint_json({"b": "ä", "a": [2, 1]}) != expected
    assert len(expected) == 16


def test_room_on_the_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (5 << 20, "5 MiB"),
        (3 << 29, "1.5 GiB"),
        (2 << 40, "2,048.0 GiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert readable_bytes(count) == text


def test_an_error_of_a_disk_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left.*'.*/x.bin'"),
        atomic_write(tmp_path / "x.bin"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
