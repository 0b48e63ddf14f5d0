from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from ovd_d2.cache import CacheError, space
from ovd_d2.cache.space import check_space, full_disk_explained, needed_bytes


def test_bytes_of_the_lvis_setting(make_manifest: Callable) -> None:
    manifest = make_manifest(embedding_dim=512, dtype="float16")
    row = 512 * 2 + 4 * 4 + 4  # embedding, box, objectness
    expected = 100_170 * (300 * row + 3 * 8 + 32) + 8
    assert needed_bytes(manifest, 100_170, 300) == expected


def test_a_disk_with_just_enough_room(
    tmp_path: Path, make_manifest: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest()
    needed = needed_bytes(manifest, 1000, 300.0)
    monkeypatch.setattr(space, "free_bytes", lambda folder: needed)
    check_space(tmp_path, manifest, 1000, 300.0)
    monkeypatch.setattr(space, "free_bytes", lambda folder: needed - 2048)
    with pytest.raises(
        CacheError, match="1,000 images with 300 proposals each need .* MiB"
    ) as caught:
        check_space(tmp_path, manifest, 1000, 300.0)
    assert "Free 2 KiB" in str(caught.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(CacheError, match="is full .no room.: .* are free. Make room and run"),
        full_disk_explained(tmp_path),
    ):
        raise OSError(code, "no room")
    with pytest.raises(PermissionError), full_disk_explained(tmp_path):
        raise PermissionError(errno.EACCES, "not yours")
