"""Killing builds of the cache: what is counted."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import cache_kills
from benchmarks.cache_kills import WORK, measure, table_of

TINY = replace(WORK, image_size=(48, 64), images=8, proposals=2)


def test_killed_builds_come_out_as_the_undisturbed_one():
    row = measure(kills=2, work=TINY)
    assert row["identical"] == row["kills"] == 2
    assert 0 <= row["killed"] <= 2
    assert table_of([{"name": "other"}, row]).count("\n") == 2


def fake_run(build: object, folder: Path, kill_after: float | None = None) -> tuple[bool, float]:
    folder.mkdir(exist_ok=True)
    (folder / "shard").write_text("other" if folder.name == "1" else "same")
    return kill_after is not None, 2.0


def test_a_store_that_differs_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_kills, "_run", fake_run)
    row = measure(kills=3, work=TINY)
    assert (row["kills"], row["killed"], row["identical"]) == (3, 3, 2)


def test_a_build_that_fails_by_itself_is_told(tmp_path: Path):
    build = cache_kills._Build(TINY, [], tmp_path / "no_proposals")
    with pytest.raises(RuntimeError, match="ended with status 1"):
        cache_kills._run(build, tmp_path / "store")
