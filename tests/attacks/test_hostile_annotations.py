"""Annotation files that Python's JSON would stumble over, or fill the memory with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.annotation_files import read_annotations
from ovd_d2.data.categories import get_categories
from tests.attacks.hostile import DEEP_JSON, DIGITS, refused

NAME = "attacks_annotations"
PARTS = '"images": [], "annotations": [], "categories"'
HOSTILE = {
    "brackets": DEEP_JSON,
    "brackets inside": f"{{{PARTS}: {DEEP_JSON}}}",
    "braces": '{"a":' * 100_000,
    "digits": f'{{{PARTS}: [{{"id": {DIGITS}, "name": "a"}}]}}',
    "no text": bytes(range(256)) * 100,
    "half a letter": b'{"images": "\xc3',
    "nothing": "",
    "a number": "1e400",
    "a text": '"images annotations categories"',
    "a list": '["images", "annotations", "categories"]',
}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The annotation file of a registered data set."""
    path = tmp_path / "hostile.json"
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(json_file=str(path))
    yield path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_annotation_file_is_refused(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    refused(lambda: read_annotations(path), path)
    refused(lambda: get_categories(NAME), path)
