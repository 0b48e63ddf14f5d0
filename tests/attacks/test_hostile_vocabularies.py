"""Vocabulary files are shared; a hostile one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovd_d2.clip.vocabulary_builder import read_names
from ovd_d2.vocabulary import SCHEMA, Vocabulary
from tests.attacks.hostile import DEEP_JSON, DIGITS, refused, running_pickle, safetensors

ROWS = np.eye(2, 4, dtype="<f4")


def vocabulary(names: str, rows: np.ndarray = ROWS, novel: int = 2) -> bytes:
    """A file of two categories with these names (JSON)."""
    size = rows.nbytes
    return safetensors(
        {
            "__metadata__": {"schema": SCHEMA, "names": names},
            "embeddings": {"dtype": "F32", "shape": rows.shape, "data_offsets": [0, size]},
            "novel": {"dtype": "BOOL", "shape": [novel], "data_offsets": [size, size + novel]},
        },
        rows.tobytes() + bytes(novel),
    )


def claim(shape: list[int], end: int) -> bytes:
    return safetensors({"embeddings": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}})


HOSTILE = {
    "a tensor of terabytes": claim([2**30, 512], 2**41),
    "a product beyond 2**64": claim([2**62, 2**62], 2**63),
    "a header of exabytes": (2**60).to_bytes(8, "little") + b"{}",
    "a header of brackets": safetensors(DEEP_JSON.encode()),
    "names of brackets": vocabulary(DEEP_JSON),
    "names of endless digits": vocabulary(DIGITS),
    "names that are a number": vocabulary("1e400"),
    "names of nested lists": vocabulary(json.dumps([[["a"] * 100_000] * 2, "b"])),
    "a million equal names": vocabulary(json.dumps(["a" * 100] * 10_000)),
    "more names than rows": vocabulary('["a", "b", "c"]'),
    "more rows than names": vocabulary('["a"]'),
    "more flags than names": vocabulary('["a", "b"]', novel=3),
    "embeddings of NaN": vocabulary('["a", "b"]', np.full((2, 4), np.nan, "<f4")),
    "embeddings of infinity": vocabulary('["a", "b"]', np.full((2, 4), np.inf, "<f4")),
    "embeddings without a column": vocabulary('["a", "b"]', np.zeros((2, 0), "<f4")),
}


def test_the_file_itself_is_sound(tmp_path: Path) -> None:
    (tmp_path / "v.safetensors").write_bytes(vocabulary('["a", "b"]'))
    assert Vocabulary.load(tmp_path / "v.safetensors").names == ["a", "b"]


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(content)
    refused(lambda: Vocabulary.load(path), path)


def test_a_pickle_with_another_name_is_refused(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(running_pickle(marker))
    refused(lambda: Vocabulary.load(path), path)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(bytes(range(256)) * 100)
    refused(lambda: read_names(path), path)
