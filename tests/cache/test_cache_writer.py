from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import CacheError, DatasetInfo, EmbeddingCache, Manifest, RecordWriter
from ovd_d2.cache.layout import LOCK_FILE
from tests.processes import CRASHED, die_at, exit_code, fork

IDS = range(1, 6)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store except the lock, by its path inside the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK_FILE
    }


def pending(folder: Path, image_id: int, writer: str = "r000") -> Path:
    return folder / "building" / writer / "pending" / f"{image_id}.safetensors"


def assert_sound(folder: Path, fingerprint: str, note: str = "") -> None:
    """The store of an undisturbed build, however its records lie in shards."""
    cache = EmbeddingCache(folder)
    assert cache.verify() == [], note
    assert cache.fingerprint == fingerprint, note
    shards = {shard.file for shard in cache.manifest.shards}
    assert set(content(folder)) == {*shards, "index.safetensors", "manifest.json"}, note
    assert not (folder / "building").exists(), note


def test_finished_store_has_only_shards_index_and_manifest(tmp_path: Path, build: Callable) -> None:
    build(tmp_path)
    assert list(content(tmp_path)) == [
        "index.safetensors",
        "manifest.json",
        "shard-r000-00000.safetensors",
        "shard-r000-00001.safetensors",
        "shard-r000-00002.safetensors",
    ]
    manifest = Manifest.load(tmp_path)
    assert manifest.complete
    assert [shard.images for shard in manifest.shards] == [2, 2, 1]
    assert [shard.rows for shard in manifest.shards] == [1 + 2, 3 + 0, 1]


def test_an_added_image_is_on_the_disk_at_once(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path, make_manifest()) as writer:
        writer.add(7, make_record(7))
        assert pending(tmp_path, 7).exists()
    with RecordWriter(tmp_path, make_manifest()) as writer:
        assert set(writer.done_ids) == {7}


def test_a_crash_at_every_single_step_is_harmless(
    tmp_path: Path,
    build: Callable,
    make_manifest: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In building, in finishing and, every third time, in recovering from the first crash."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the machine itself stays up
    ids = range(1, 4)  # one full shard, one image left over
    fingerprint = EmbeddingCache(build(tmp_path / "whole", ids)).fingerprint
    rng = random.Random(0)

    def build_and_die(folder: Path, step: int) -> int:
        log = folder.with_suffix(".log").open("ab", buffering=0)

        def run() -> None:
            die_at(step)
            build(folder, ids, added=lambda image_id: log.write(b"%d\n" % image_id))

        with log:
            return exit_code(fork(run))

    for step in range(1000):
        folder = tmp_path / f"step{step}"
        first = build_and_die(folder, step)
        if step % 3 == 0:
            assert build_and_die(folder, rng.randrange(20)) in (0, CRASHED)
        with RecordWriter(folder, make_manifest(num_images=3), images_per_shard=2) as writer:
            added = {int(line) for line in folder.with_suffix(".log").read_text().split()}
            assert added <= set(writer.done_ids), f"crash at step {step} lost an image"
        build(folder, ids)
        assert_sound(folder, fingerprint, f"crash at step {step}")
        if first == 0:
            break
        assert first == CRASHED
    # 4 steps each (write, flush, rename, flush) for 3 images, 2 shards, 2 journals, the index and
    # 3 manifests (header, shards, index); folders made, files and folders removed and flushed.
    assert step > 4 * (3 + 2 + 2 + 1 + 3)


def test_a_truncated_pending_file_is_redone(
    tmp_path: Path,
    build: Callable,
    make_manifest: Callable,
    make_record: Callable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RecordWriter(tmp_path / "a", make_manifest()) as writer:
        for image_id in (1, 2, 3):
            writer.add(image_id, make_record(image_id))
    path = pending(tmp_path / "a", 3)
    os.truncate(path, path.stat().st_size - 10)
    pending(tmp_path / "a", 1).write_bytes(b"")
    with RecordWriter(tmp_path / "a", make_manifest(), images_per_shard=2) as writer:
        assert set(writer.done_ids) == {2}
    assert "3.safetensors is damaged" in caplog.text
    build(tmp_path / "a", IDS)
    cache = EmbeddingCache(tmp_path / "a")
    assert list(cache) == list(IDS)
    assert torch.equal(cache[3].boxes, make_record(3)["boxes"])


def test_pending_file_damaged_while_running_does_not_complete_the_store(
    tmp_path: Path, build: Callable, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path, make_manifest()) as writer:
        for image_id in IDS:
            writer.add(image_id, make_record(image_id))
        pending(tmp_path, 3).write_bytes(b"garbage")
        with pytest.raises(CacheError, match="4 records, data set 'toy_train' has 5 images"):
            writer.finish()
    assert list(EmbeddingCache(build(tmp_path))) == list(IDS)


def test_a_shard_lost_from_the_middle_leaves_no_litter(
    tmp_path: Path, build: Callable, make_record: Callable
) -> None:
    os.truncate(build(tmp_path) / "shard-r000-00000.safetensors", 100)
    cache = EmbeddingCache(build(tmp_path))
    assert list(cache) == list(IDS)
    assert torch.equal(cache[1].boxes, make_record(1)["boxes"])
    listed = {shard.file for shard in cache.manifest.shards}
    assert set(content(tmp_path)) == {*listed, "index.safetensors", "manifest.json"}
    assert cache.verify() == []


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_lost_shard_is_built_again(tmp_path: Path, build: Callable, damage: str) -> None:
    expected = content(build(tmp_path / "whole"))
    folder = build(tmp_path / "hurt")
    path = folder / "shard-r000-00002.safetensors"
    if damage == "delete":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    build(folder)
    assert content(folder) == expected


def test_another_header_is_refused_and_the_keys_are_named(
    tmp_path: Path, build: Callable, make_manifest: Callable
) -> None:
    build(tmp_path)
    other = make_manifest(teacher="Other-77", recipe={"scales": [1.0]})
    with pytest.raises(CacheError) as caught:
        RecordWriter(tmp_path, other)
    message = str(caught.value)
    assert "teacher: 'Toy-RN-0123' here, 'Other-77' asked for" in message
    assert "recipe.scales: [1.0, 1.5] here, [1.0] asked for" in message
    assert "--overwrite" in message
    assert "embedding_dim" not in message


def test_tuples_in_a_recipe_do_not_stop_a_continued_build(
    tmp_path: Path, make_manifest: Callable
) -> None:
    manifest = make_manifest(recipe={"scales": (1.0, 1.5)})
    RecordWriter(tmp_path, manifest).close()
    RecordWriter(tmp_path, manifest).close()


def test_overwrite_deletes_the_old_store_and_nothing_else(
    tmp_path: Path, build: Callable, make_manifest: Callable, make_record: Callable
) -> None:
    build(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    manifest = make_manifest(teacher="Other-77", num_images=1)
    with RecordWriter(tmp_path, manifest, overwrite=True) as writer:
        assert not writer.done_ids
        writer.add(3, make_record(3))
        writer.finish()
    assert list(EmbeddingCache(tmp_path)) == [3]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_shards_without_a_manifest_are_not_touched(
    tmp_path: Path, build: Callable, make_manifest: Callable
) -> None:
    build(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CacheError, match="shard-r000-00000.safetensors but no manifest.json"):
        RecordWriter(tmp_path, make_manifest())
    assert (tmp_path / "shard-r000-00000.safetensors").exists()


def test_finish_refuses_a_store_that_lacks_images(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path, make_manifest(num_images=2)) as writer:
        writer.add(1, make_record(1))
        with pytest.raises(CacheError, match="1 records, data set 'toy_train' has 2 images"):
            writer.finish()
    assert not Manifest.load(tmp_path).complete


def test_a_finished_store_may_be_finished_again(tmp_path: Path, build: Callable) -> None:
    before = content(build(tmp_path))
    assert content(build(tmp_path)) == before


def test_a_finished_or_closed_writer_takes_no_more(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    writer = RecordWriter(tmp_path, make_manifest(num_images=1))
    writer.add(1, make_record(1))
    writer.finish()
    with pytest.raises(ValueError, match="image 2: the writer of .* is finished or closed"):
        writer.add(2, make_record(2))
    writer.close()
    writer.close()
    assert not (tmp_path / "building").exists()


def test_what_is_missing_may_be_added_after_a_refused_finish(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path, make_manifest(num_images=2)) as writer:
        writer.add(1, make_record(1))
        with pytest.raises(CacheError, match="lacks 1 of 2 images .first ids: .2.."):
            writer.finish([1, 2])
        writer.add(2, make_record(2))
        assert writer.finish([1, 2]).complete
    assert list(EmbeddingCache(tmp_path)) == [1, 2]


def test_a_part_is_finished_without_being_complete(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path, make_manifest(num_images=5), writer="m000") as writer:
        for image_id in (1, 3):
            writer.add(image_id, make_record(image_id))
        manifest = writer.finish([1, 3])
    assert not manifest.complete
    assert [shard.file for shard in manifest.shards] == ["shard-m000-00000.safetensors"]
    assert list(EmbeddingCache(tmp_path, allow_incomplete=True)) == [1, 3]
    assert sorted(content(tmp_path)) == ["manifest.json", "shard-m000-00000.safetensors"]


@pytest.mark.parametrize("name", ["0", "r1", "../r000", "R000", ""])
def test_writers_have_plain_names(tmp_path: Path, make_manifest: Callable, name: str) -> None:
    if name:
        with pytest.raises(ValueError, match="expected a letter and digits"):
            RecordWriter(tmp_path, make_manifest(), writer=name)
    else:
        RecordWriter(tmp_path, make_manifest(), writer=name).close()  # none: after the rank


def test_bad_ids_are_refused(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path, make_manifest()) as writer:
        writer.add(1, make_record(1))
        with pytest.raises(ValueError, match="image 1 is already stored"):
            writer.add(1, make_record(1))
        for wrong in (-1, 2**63, "2", 2.0, True):
            with pytest.raises(ValueError, match=rf"image id {wrong!r}: expected whole numbers"):
                writer.add(wrong, make_record(1))  # type: ignore[arg-type]
        embeddings = make_record(3)["embeddings"]
        embeddings[0, 0] = float("nan")
        with pytest.raises(ValueError, match="image 3: refused: .*embeddings are NaN"):
            writer.add(3, {**make_record(3), "embeddings": embeddings})
        assert set(writer.done_ids) == {1}


def test_two_processes_cannot_write_to_one_folder(tmp_path: Path, make_manifest: Callable) -> None:
    def second() -> None:
        with pytest.raises(CacheError, match=r"another process \(\d+ on .*\) is writing"):
            RecordWriter(tmp_path, make_manifest())

    with RecordWriter(tmp_path, make_manifest()):
        assert exit_code(fork(second)) == 0
    assert exit_code(fork(lambda: RecordWriter(tmp_path, make_manifest()))) == 0


def test_orphaned_workers_do_not_keep_the_lock(tmp_path: Path, make_manifest: Callable) -> None:
    with RecordWriter(tmp_path, make_manifest()):
        worker = fork(lambda: time.sleep(30))
    try:
        RecordWriter(tmp_path, make_manifest()).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "boxes"}, "kind is 'boxes'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"teacher": ""}, "teacher is empty"),
        ({"dataset": DatasetInfo("none", "x", 0)}, "'none' has no images"),
    ],
)
def test_invalid_manifests_are_refused(
    make_manifest: Callable, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_manifest(**{"kind": "embeddings", **changes})


def test_memory_does_not_grow_with_the_number_of_images(
    tmp_path: Path, make_manifest: Callable
) -> None:
    record = {
        "boxes": torch.tensor([0.0, 0, 1, 1]).repeat(300, 1),
        "objectness": torch.ones(300),
        "embeddings": torch.nn.functional.normalize(torch.ones(300, 512), dim=1),
    }

    def write() -> None:
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
        manifest = make_manifest(num_images=200, embedding_dim=512)
        with RecordWriter(tmp_path, manifest, images_per_shard=8) as writer:
            for image_id in range(200):  # 66 MB
                if image_id == 20:
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                writer.add(image_id, record)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 16 << 10, f"{after - before} KiB more"

    assert exit_code(fork(write)) == 0
