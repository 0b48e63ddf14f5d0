"""The attacks work where nothing stands against them; so a test that passes says something."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.attacks.conftest import MEMORY
from tests.attacks.hostile import DEEP_JSON, DIGITS, running_pickle


def test_the_pickle_runs_where_pickles_are_trusted(tmp_path: Path) -> None:
    pickle.loads(running_pickle(tmp_path / "ran"))  # noqa: S301 (our own)
    assert (tmp_path / "ran").exists()


def test_memory_is_bounded() -> None:
    with pytest.raises(MemoryError):
        np.ones(2 * MEMORY, np.uint8)


def test_json_of_python_does_not_refuse_these_by_itself() -> None:
    with pytest.raises(RecursionError):
        json.loads(DEEP_JSON)
    with pytest.raises(ValueError, match="Exceeds the limit"):
        json.loads(DIGITS)
    assert json.loads("1e400") == float("inf")
