"""Several processes write one cache: over gloo here, as over Detectron2's launch and torchrun."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovd_d2.cache import (
    CacheError,
    DatasetInfo,
    EmbeddingCache,
    Manifest,
    ProposalStore,
    RecordWriter,
    dataset_fingerprint,
)
from ovd_d2.engine.cache_builder import build_cache
from ovd_d2.cache.layout import LOCK_FILE
from ovd_d2.cache.ranks import Ranks
from ovd_d2.clip.teacher import CLIPTeacher
from tests.processes import exit_code, kill, run_ranks, start_ranks

IDS = range(1, 12)


@pytest.fixture
def share(make_manifest: Callable, make_record: Callable) -> Callable[..., None]:
    """`share(folder)`: what every rank of a build does."""

    def run(path: Path, ids: range = IDS, shard: int = 2) -> None:
        ranks = Ranks()
        manifest = make_manifest(num_images=len(ids))
        with RecordWriter(path, manifest, shard, ranks=ranks) as writer:
            waiting = [image_id for image_id in ids if image_id not in writer.done_ids]
            for image_id in waiting[ranks.rank :: ranks.count]:
                writer.add(image_id, make_record(image_id))
            assert writer.finish().complete

    return run


@pytest.mark.parametrize("count", [2, 4])
def test_the_content_does_not_depend_on_the_number_of_processes(
    tmp_path: Path, share: Callable[..., None], count: int
) -> None:
    share(tmp_path / "one")
    assert run_ranks(count, lambda rank: share(tmp_path / "many")) == [0] * count
    one, many = EmbeddingCache(tmp_path / "one"), EmbeddingCache(tmp_path / "many")
    assert many.verify() == []
    assert many.fingerprint == one.fingerprint
    assert list(many) == list(one) == list(IDS)
    for image_id in IDS:
        assert torch.equal(many[image_id].boxes, one[image_id].boxes)
        assert torch.equal(many[image_id].objectness, one[image_id].objectness)
        assert torch.equal(many[image_id].embeddings, one[image_id].embeddings)
    writers = {shard.file.split("-")[1] for shard in many.manifest.shards}
    assert writers == {f"r{rank:03d}" for rank in range(count)}
    left = {path.name for path in (tmp_path / "many").iterdir()}
    shards = {shard.file for shard in many.manifest.shards}
    assert left == {*shards, "manifest.json", "index.safetensors", LOCK_FILE}


def test_more_processes_than_images(tmp_path: Path, share: Callable[..., None]) -> None:
    assert run_ranks(4, lambda rank: share(tmp_path, range(2))) == [0] * 4
    assert list(EmbeddingCache(tmp_path)) == [0, 1]


def test_an_error_of_rank_0_reaches_all_at_once(
    tmp_path: Path, make_manifest: Callable, share: Callable[..., None]
) -> None:
    share(tmp_path)

    def refused(rank: int) -> None:
        message = r"built with other settings: teacher: 'Toy-RN-0123' here, 'B-1' asked for"
        if rank:
            message = "rank 0 of 2: .*" + message
        with pytest.raises(CacheError, match=message):
            RecordWriter(tmp_path, make_manifest(num_images=11, teacher="B-1"))

    begin = time.monotonic()
    assert run_ranks(2, refused) == [0, 0]
    assert time.monotonic() - begin < 30  # seconds: no timeout has been waited for


def test_a_rank_with_other_settings_or_another_folder_is_refused(
    tmp_path: Path, make_manifest: Callable
) -> None:
    def other_teacher(rank: int) -> None:
        message = (
            "rank 0 builds with other settings: teacher" if rank else "rank 1 of 2: rank 0 bui"
        )
        with pytest.raises(CacheError, match=message):
            RecordWriter(tmp_path / "a", make_manifest(teacher=f"Teacher-{rank}"))

    def other_disk(rank: int) -> None:
        with pytest.raises(CacheError, match="is not the folder of rank 0 .*build parts and merge"):
            RecordWriter(tmp_path / f"disk{rank}", make_manifest())

    assert run_ranks(2, other_teacher) == [0, 0]
    assert run_ranks(2, other_disk) == [0, 0]


def test_nobody_waits_for_a_rank_that_failed(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    def work(rank: int) -> None:
        with RecordWriter(tmp_path, make_manifest(num_images=2)) as writer:
            if rank == 1:
                raise KeyError("the picture of rank 1")
            writer.add(1, make_record(1))
            with pytest.raises(CacheError, match="another process of this build has ended"):
                writer.finish()

    begin = time.monotonic()
    assert run_ranks(2, work) == [0, 1]
    assert time.monotonic() - begin < 30
    with RecordWriter(tmp_path, make_manifest(num_images=2)) as writer:
        assert set(writer.done_ids) == {1}


def test_a_living_writer_of_another_build_is_named(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    """Rank 0 was killed, rank 1 still works: its files are not touched."""

    def work(rank: int) -> None:
        with RecordWriter(tmp_path, make_manifest()) as writer:
            writer.add(rank, make_record(rank))
            (tmp_path / f"ready{rank}").touch()
            time.sleep(60)

    children = start_ranks(2, work)
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        time.sleep(0.01)
    kill(children[:1])
    exit_code(children[0])
    pending = tmp_path / "building" / "r001" / "pending" / "1.safetensors"
    with pytest.raises(CacheError, match=rf"process \({children[1]} on .*\) is writing .* as r001"):
        RecordWriter(tmp_path, make_manifest())
    with pytest.raises(CacheError, match="as r001"):
        RecordWriter(tmp_path, make_manifest(), overwrite=True)
    assert pending.exists()
    kill(children[1:])
    exit_code(children[1])
    with RecordWriter(tmp_path, make_manifest()) as writer:
        assert set(writer.done_ids) == {0, 1}


def test_the_real_teacher_gives_the_same_bits_in_any_number_of_processes(tmp_path: Path) -> None:
    """On a CPU: batches have one size, and no row of a batch depends on its neighbours."""
    entries, proposals = noise_pictures(tmp_path)
    teacher = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")

    def build(path: Path) -> None:
        options = {"dataset_name": "noise", "batch_size": 8, "progress": False}
        build_cache(entries, ProposalStore(proposals), teacher, path, **options)

    build(tmp_path / "1")
    one = EmbeddingCache(tmp_path / "1")
    for count in (2, 4):
        assert run_ranks(count, lambda rank, count=count: build(tmp_path / f"{count}")) == (
            [0] * count
        )
        assert EmbeddingCache(tmp_path / f"{count}").fingerprint == one.fingerprint


def noise_pictures(folder: Path) -> tuple[list[dict[str, Any]], Path]:
    """Nine pictures with 0 to 6 boxes each, and the folder of the boxes."""
    generator = np.random.default_rng(0)
    entries = []
    for image_id in range(9):
        path = folder / f"{image_id}.png"
        Image.fromarray(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
        entry = {"file_name": str(path), "image_id": image_id, "height": 60, "width": 80}
        entries.append(entry)
    info = DatasetInfo("noise", dataset_fingerprint(entries), len(entries))
    with RecordWriter(folder / "proposals", Manifest("proposals", info, "rpn")) as writer:
        for image_id in range(9):
            corners = torch.from_numpy(generator.uniform(0, 40, (3 * image_id % 7, 2)))
            boxes = torch.cat([corners, corners + 20], dim=1)
            writer.add(image_id, {"boxes": boxes, "objectness": torch.ones(len(boxes))})
        writer.finish()
    return entries, folder / "proposals"
