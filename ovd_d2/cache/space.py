"""Room on the disk: asked for before a build starts, explained when it runs out."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator
from pathlib import Path

from ovd_d2.cache.manifest import CacheError, Manifest
from ovd_d2.cache.records import data_bytes
from ovd_d2.files import free_bytes, readable_bytes

_INDEX_BYTES = 32  # an image's entry in the index of the store
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def needed_bytes(manifest: Manifest, images: int, rows_per_image: float) -> int:
    """Room that so many more images, with this mean number of proposals, need on the disk."""
    rows = math.ceil(images * rows_per_image)
    return data_bytes(manifest.fields, images, rows) + _INDEX_BYTES * images


def check_space(folder: Path, manifest: Manifest, images: int, rows_per_image: float) -> None:
    """Refuse a build that the disk has no room for, with the bytes needed and free."""
    needed = needed_bytes(manifest, images, rows_per_image)
    free = free_bytes(folder)
    if needed > free:
        raise CacheError(
            f"the disk of {folder} is too small: {images:,} images with {rows_per_image:.0f} "
            f"proposals each need {readable_bytes(needed)}, {readable_bytes(free)} are free. Free "
            f"{readable_bytes(needed - free)}, take another disk, keep fewer proposals or a "
            f"smaller dtype (now {manifest.dtype})"
        )


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn "no space left on device" into a CacheError that says how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = readable_bytes(free_bytes(folder))
        raise CacheError(
            f"the disk of {folder} is full ({error.strerror}): {free} are free. Make room and run "
            "the same command again: what is stored stays"
        ) from error
