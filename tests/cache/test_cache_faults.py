"""Whatever happens to a build, running it again makes the cache of an undisturbed build."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
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
    records,
    space,
    writer,
)
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.engine.cache_builder import build_cache
from tests.processes import CRASHED, die_at, exit_code, fork, kill, run_ranks, start_ranks
from tests.proposal_stores import files_of

NAME = "toy_train"
IDS = range(17, 9, -1)  # 8 images; not in the order of their ids
KILLED = -signal.SIGKILL


class ColourModel(torch.nn.Module):
    """Embeds every image by itself, as its mean colour: equal bits whatever the batch."""

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([image.mean(dim=(1, 2)) + 0.1 for image in batch])

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(tokens), 3)


def teacher() -> CLIPTeacher:
    return CLIPTeacher(
        ColourModel(),
        lambda sentences: torch.zeros(len(sentences), 1, dtype=torch.int64),
        {"size": (8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear"},
        architecture="Colour",
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """A data set of noise and a folder of proposals; every fourth image has none."""
    folder = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    entries = []
    for image_id in IDS:
        path = folder / f"{image_id}.png"
        Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
        entry = {"file_name": str(path), "image_id": image_id, "height": 24, "width": 32}
        entries.append(entry)
    info = DatasetInfo(NAME, dataset_fingerprint(entries), len(entries))
    manifest = Manifest("proposals", info, "rpn")
    with RecordWriter(folder / "proposals", manifest, images=entries) as store:
        for image_id in IDS:
            seeded, count = torch.Generator().manual_seed(image_id), image_id % 4
            corners = torch.rand(count, 2, generator=seeded)
            boxes = torch.cat([corners * 10, corners * 10 + 8], dim=1)
            objectness = torch.rand(count, generator=seeded)
            store.add(image_id, {"boxes": boxes, "objectness": objectness})
        store.finish()
    return entries, folder / "proposals"


@pytest.fixture(scope="module")
def build(source: tuple[list[dict[str, Any]], Path]) -> Callable[..., None]:
    """`build(folder)`: this process's share of the cache."""
    entries, proposals = source

    def run(path: Path, **options: Any) -> None:
        given = {"dataset_name": NAME, "images_per_shard": 2, "progress": False, **options}
        build_cache(entries, ProposalStore(proposals), teacher(), path, **given)

    return run


@pytest.fixture(scope="module")
def whole(build: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    path = tmp_path_factory.mktemp("whole") / "cache"
    assert exit_code(fork(lambda: build(path))) == 0
    return EmbeddingCache(path)


def assert_same(path: Path, whole: EmbeddingCache, note: str = "") -> None:
    """Byte by byte, and nothing else is in the folder."""
    assert files_of(path) == files_of(whole.path), note


@pytest.fixture
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the machine itself stays up


@pytest.mark.usefixtures("without_flushing")
def test_kill_9_at_random_moments(
    tmp_path: Path, build: Callable[..., None], whole: EmbeddingCache
) -> None:
    started, start = os.pipe()

    def announced(path: Path) -> None:
        os.write(start, b"x")
        build(path)

    begin = time.perf_counter()
    assert exit_code(fork(lambda: build(tmp_path / "timed"))) == 0
    duration = time.perf_counter() - begin
    codes = []
    for seed in range(20):
        path, rng = tmp_path / str(seed), random.Random(seed)
        for _ in range(rng.choice([1, 1, 2])):  # sometimes the second run, too
            child = fork(lambda path=path: announced(path))  # type: ignore[misc]
            os.read(started, 1)
            time.sleep(rng.uniform(0, duration))
            kill([child])
            codes.append(exit_code(child))
        build(path)
        assert_same(path, whole, f"seed {seed}")
    assert set(codes) <= {0, KILLED}
    assert codes.count(KILLED) >= 8


@pytest.mark.usefixtures("without_flushing")
@pytest.mark.parametrize("seed", range(4))
def test_a_rank_dies_and_another_number_of_ranks_goes_on(
    tmp_path: Path, build: Callable[..., None], whole: EmbeddingCache, seed: int
) -> None:
    rng = random.Random(seed)
    path, victim = tmp_path / "cache", rng.randrange(2)

    def run(rank: int) -> None:
        if rank == victim:
            die_at(rng.randrange(3, 25))
        build(path)

    codes = run_ranks(2, run)
    assert codes[victim] in (0, CRASHED)
    # The survivor has noticed at once that it waits for nobody, or both came to their end.
    assert codes[1 - victim] == (0 if codes[victim] == 0 else 1)
    assert run_ranks(rng.choice([1, 3, 4]), lambda rank: build(path))[0] == 0
    assert_same(path, whole)


def test_all_ranks_are_killed_at_random_moments(
    tmp_path: Path, build: Callable[..., None], whole: EmbeddingCache
) -> None:
    for seed in range(2):
        rng = random.Random(seed)
        path = tmp_path / str(seed)
        for count in (4, 2):
            children = start_ranks(count, lambda rank, path=path: build(path))  # type: ignore[misc]
            time.sleep(rng.uniform(0.1, 0.4))
            kill(children)
            assert {exit_code(child) for child in children} <= {0, KILLED, 1}
        assert run_ranks(1, lambda rank, path=path: build(path)) == [0]  # type: ignore[misc]
        assert_same(path, whole, f"seed {seed}")


def test_a_flipped_byte_anywhere_is_healed_or_refused(
    tmp_path: Path, build: Callable[..., None], whole: EmbeddingCache
) -> None:
    rng = random.Random(0)
    files = list(whole.path.iterdir())
    for number, file in enumerate(rng.choices(files, k=16)):
        path = tmp_path / str(number)
        shutil.copytree(whole.path, path)
        data = bytearray((path / file.name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (path / file.name).write_bytes(data)
        if file.name == "manifest.json":
            with pytest.raises(CacheError, match="manifest.json"):
                build(path)
        else:
            build(path)
            assert_same(path, whole, file.name)


class FullDisk:
    """Writing fails, once so many bytes have been written."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write_bytes = Path.write_bytes

    def write_bytes(self, path: Path, data: bytes) -> int:
        self._write_bytes(path, data[: max(0, self.room)])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return len(data)


def build_on(disk: FullDisk, build: Callable[..., None], path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, data: disk.write_bytes(path, data))
        build(path)


@pytest.mark.usefixtures("without_flushing")
def test_a_full_disk_is_explained_and_does_no_damage(
    tmp_path: Path, build: Callable[..., None], whole: EmbeddingCache
) -> None:
    large = FullDisk(10**9)
    build_on(large, build, tmp_path / "large")
    written = 10**9 - large.room
    for room in range(0, written, written // 12):
        path = tmp_path / str(room)
        with pytest.raises(CacheError, match=r"is full .No space left on device.: .* are free\. M"):
            build_on(FullDisk(room), build, path)
        assert not list(path.rglob("*.tmp"))
        build(path)
        assert_same(path, whole, f"room for {room} of {written} bytes")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(
    small_disk: Path,
    build: Callable[..., None],
    whole: EmbeddingCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(CacheError, match=r"is full .No space left on device.: 0 bytes are free"):
        build(small_disk / "cache")
    ballast.unlink()

    def pack_shard(found: list[tuple[int, records.Record]]) -> bytes:
        """Somebody else fills the disk once the build has begun."""
        if len(list((small_disk / "cache").glob("shard-*"))) == 2 and not ballast.exists():
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        return records.pack_shard(found)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "pack_shard", pack_shard)
        with pytest.raises(
            CacheError, match=r"is full .No space left on device.: 0 bytes are free"
        ):
            build(small_disk / "cache")
    assert EmbeddingCache(small_disk / "cache", allow_incomplete=True).manifest.num_images == 4
    ballast.unlink()
    build(small_disk / "cache")
    assert_same(small_disk / "cache", whole)


def test_a_disk_that_is_too_small_from_the_start(
    tmp_path: Path, build: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda folder: 500)
    with pytest.raises(CacheError, match=r"too small: 8 images with .* need .*, 500 bytes are fr"):
        build(tmp_path / "cache")


def test_no_file_handle_stays_open(tmp_path: Path, build: Callable[..., None]) -> None:
    build(tmp_path / "warm")  # imports, and what libraries keep for good
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        build(tmp_path / str(number))
        build(tmp_path / str(number))
        with pytest.raises(CacheError):
            build(tmp_path / str(number), top_k=1)
    assert len(os.listdir("/proc/self/fd")) <= before
