"""Several processes write one cache: over gloo here, as over Detectron2's launch and torchrun."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ovd_d2.cache import CacheError, EmbeddingCache
from ovd_d2.ranks import RankError
from tests.processes import exit_code, kill, run_ranks, start_ranks
from tests.proposal_stores import files_of

IDS = range(1, 12)


@pytest.mark.parametrize("count", [2, 4])
def test_the_files_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, build: Callable, count: int
) -> None:
    build(tmp_path / "one", IDS)
    assert run_ranks(count, lambda rank: build(tmp_path / "many", IDS)) == [0] * count
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one")
    assert EmbeddingCache(tmp_path / "many").verify() == []


def test_ranks_share_what_is_missing(
    tmp_path: Path, build: Callable, open_writer: Callable
) -> None:
    build(tmp_path, IDS)
    for number in (0, 2, 3, 4):
        (tmp_path / f"shard-n002-{number:05d}.safetensors").unlink()

    def waiting(rank: int) -> None:
        assert open_writer(tmp_path, IDS).waiting_ids == [[1, 2, 7, 8], [5, 6, 9, 10]][rank]

    assert run_ranks(2, waiting) == [0, 0]


def test_more_processes_than_images(tmp_path: Path, build: Callable) -> None:
    assert run_ranks(4, lambda rank: build(tmp_path, range(2))) == [0] * 4
    assert list(EmbeddingCache(tmp_path)) == [0, 1]


def test_an_error_of_rank_0_reaches_all_at_once(
    tmp_path: Path, build: Callable, open_writer: Callable
) -> None:
    build(tmp_path)

    def refused(rank: int) -> None:
        message = r"built with other settings: teacher: 'Toy-RN-0123' here, 'B-1' asked for"
        if rank:
            message = "rank 0 of 2: .*" + message
        with pytest.raises((CacheError, RankError), match=message):
            open_writer(tmp_path, teacher="B-1")

    begin = time.monotonic()
    assert run_ranks(2, refused) == [0, 0]
    assert time.monotonic() - begin < 30  # seconds: no timeout has been waited for


def test_a_rank_with_other_settings_or_another_folder_is_refused(
    tmp_path: Path, open_writer: Callable
) -> None:
    def other_teacher(rank: int) -> None:
        message = (
            "rank 0 builds with other settings: teacher" if rank else "rank 1 of 2: rank 0 bui"
        )
        with pytest.raises((CacheError, RankError), match=message):
            open_writer(tmp_path / "a", teacher=f"Teacher-{rank}")

    def other_disk(rank: int) -> None:
        message = "is not the folder of rank 0 .*build parts and merge"
        with pytest.raises((CacheError, RankError), match=message):
            open_writer(tmp_path / f"disk{rank}")

    assert run_ranks(2, other_teacher) == [0, 0]
    assert run_ranks(2, other_disk) == [0, 0]


def test_nobody_waits_for_a_rank_that_failed(
    tmp_path: Path, open_writer: Callable, make_record: Callable
) -> None:
    def work(rank: int) -> None:
        with open_writer(tmp_path, range(4)) as writer:
            if rank == 1:
                raise KeyError("the image of rank 1")
            for image_id in writer.waiting_ids:
                writer.add(image_id, make_record(image_id))
            with pytest.raises(RankError, match="another process of this group has ended"):
                writer.finish()

    begin = time.monotonic()
    assert run_ranks(2, work) == [0, 1]
    assert time.monotonic() - begin < 30
    assert open_writer(tmp_path, range(4)).waiting_ids == [2, 3]  # of rank 1


def test_a_living_rank_of_a_dead_build_does_no_harm(
    tmp_path: Path, build: Callable, open_writer: Callable, make_record: Callable
) -> None:
    """Rank 0 was killed, and rank 1 still writes its shards while the build is run again."""
    whole = files_of(build(tmp_path / "whole", IDS))
    path = tmp_path / "cache"

    def work(rank: int) -> None:
        with open_writer(path, IDS) as writer:
            (tmp_path / f"ready{rank}").touch()
            while rank == 0 or not (tmp_path / "go").exists():
                time.sleep(0.01)
            for image_id in writer.waiting_ids:
                writer.add(image_id, make_record(image_id))

    children = start_ranks(2, work)
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        time.sleep(0.01)
    kill(children[:1])
    exit_code(children[0])
    (tmp_path / "go").touch()
    build(path, IDS)
    assert exit_code(children[1]) == 0
    assert files_of(path) == whole
