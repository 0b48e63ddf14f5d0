"""Folders of golden numbers for tests."""

from __future__ import annotations

from pathlib import Path

from check_golden import build

from ovd_d2.golden import GoldenFolder, Part


def folder_of(part: Part, source: Path, folder: Path) -> GoldenFolder:
    """The files that a part says it needs, and no others.

    Args:
        part: of a system.
        source: has these files.
        folder: takes links to them.
    """
    for file in part.files:
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(source / file)
    return GoldenFolder(folder, build)
