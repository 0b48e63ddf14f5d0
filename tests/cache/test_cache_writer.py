"""Writing by one process: what is on the disk when, what continues, what is refused."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import CacheError, DatasetInfo, EmbeddingCache, Manifest, RecordWriter
from tests.processes import CRASHED, die_at, exit_code, fork
from tests.proposal_stores import files_of

IDS = range(1, 6)
FILES = [
    "images.json",
    "index.safetensors",
    "manifest.json",
    "shard-n002-00000.safetensors",
    "shard-n002-00001.safetensors",
    "shard-n002-00002.safetensors",
]


def test_a_finished_store_has_shards_lists_and_manifest(tmp_path: Path, build: Callable) -> None:
    build(tmp_path)
    assert list(files_of(tmp_path)) == FILES
    manifest = Manifest.load(tmp_path)
    assert manifest.complete
    assert [shard.images for shard in manifest.shards] == [2, 2, 1]
    assert [shard.rows for shard in manifest.shards] == [1 + 2, 3 + 0, 1]


def test_a_shard_is_on_the_disk_once_its_images_are_there(
    tmp_path: Path, open_writer: Callable, make_record: Callable
) -> None:
    with open_writer(tmp_path) as writer:
        assert writer.waiting_ids == list(IDS)
        writer.add(4, make_record(4))
        assert not list(tmp_path.glob("shard-*"))
        writer.add(3, make_record(3))  # in any order
        assert [path.name for path in tmp_path.glob("shard-*")] == [FILES[4]]
        writer.add(5, make_record(5))
        writer.add(1, make_record(1))  # whose shard is never filled
    with open_writer(tmp_path) as writer:
        assert writer.waiting_ids == [1, 2]
        assert writer.missing == 2
    assert list(EmbeddingCache(tmp_path, allow_incomplete=True)) == [3, 4, 5]


def test_a_crash_at_every_single_step_is_harmless(
    tmp_path: Path, build: Callable, open_writer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In building, in finishing and, every third time, in continuing after the first crash."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the machine itself stays up
    whole = files_of(build(tmp_path / "whole"))
    rng = random.Random(0)

    def build_and_die(folder: Path, step: int) -> int:
        def run() -> None:
            die_at(step)
            build(folder)

        return exit_code(fork(run))

    for step in range(1000):
        folder = tmp_path / f"step{step}"
        first = build_and_die(folder, step)
        sealed = {path.name for path in folder.glob("shard-*")}
        if step % 3 == 0:
            assert build_and_die(folder, rng.randrange(20)) in (0, CRASHED)
        with open_writer(folder) as writer:  # nothing that was sealed is asked for again
            assert len(writer.waiting_ids) <= len(IDS) - 2 * len(sealed) + (FILES[5] in sealed)
        build(folder)
        assert files_of(folder) == whole, f"crash at step {step}"
        if first == 0:
            break
        assert first == CRASHED
    # 4 steps each (write, flush, rename, flush) for 3 shards, 2 manifests and 2 lists.
    assert step > 4 * (3 + 2 + 2)


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("name", FILES[3:])
def test_a_lost_shard_is_built_again_alone(
    tmp_path: Path, build: Callable, open_writer: Callable, damage: str, name: str
) -> None:
    expected = files_of(build(tmp_path))
    path, data = tmp_path / name, bytearray(expected[name])
    data[-1] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with open_writer(tmp_path, shard=None) as writer:  # as many images as the other shards have
        assert len(writer.waiting_ids) == (1 if name == FILES[5] else 2)
    build(tmp_path, shard=None)
    assert files_of(tmp_path) == expected


def test_another_number_of_images_in_a_shard_is_refused(
    tmp_path: Path, build: Callable, open_writer: Callable
) -> None:
    build(tmp_path)
    with pytest.raises(CacheError, match="has shards of 2 images, 3 are asked for; leave"):
        open_writer(tmp_path, shard=3)
    with pytest.raises(ValueError, match="images_per_shard is 0"):
        open_writer(tmp_path, shard=0)


def test_another_header_is_refused_and_the_keys_are_named(
    tmp_path: Path, build: Callable, open_writer: Callable
) -> None:
    build(tmp_path)
    with pytest.raises(CacheError) as caught:
        open_writer(tmp_path, teacher="Other-77", recipe={"scales": [1.0]})
    message = str(caught.value)
    assert "teacher: 'Toy-RN-0123' here, 'Other-77' asked for" in message
    assert "recipe.scales: [1.0, 1.5] here, [1.0] asked for" in message
    assert "--overwrite" in message
    assert "embedding_dim" not in message


def test_tuples_in_a_recipe_do_not_stop_a_continued_build(
    tmp_path: Path, open_writer: Callable
) -> None:
    for _ in range(2):
        open_writer(tmp_path, recipe={"scales": (1.0, 1.5)})


def test_overwrite_deletes_the_old_store_and_nothing_else(tmp_path: Path, build: Callable) -> None:
    build(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "images").mkdir()
    build(tmp_path, [3], shard=64, teacher="Other-77", overwrite=True)
    assert list(EmbeddingCache(tmp_path)) == [3]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "images").exists()
    assert len(list(tmp_path.glob("shard-*"))) == 1


def test_overwriting_what_other_versions_left(tmp_path: Path, open_writer: Callable) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}')
    for name in ("shard-00000.safetensors", "shard-r001-00000.safetensors", ".x.12-ab.tmp"):
        (tmp_path / name).write_bytes(b"old")
    for folder in (tmp_path / "pending", tmp_path / "building" / "r000" / "pending"):
        folder.mkdir(parents=True)
        (folder / "1.safetensors").write_bytes(b"old")
    with pytest.raises(CacheError, match="schema version 1"):
        open_writer(tmp_path)
    assert open_writer(tmp_path, overwrite=True).missing == 5
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "images.json"}


def test_shards_without_a_manifest_are_not_touched(
    tmp_path: Path, build: Callable, open_writer: Callable
) -> None:
    build(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CacheError, match=f"{FILES[3]} but no manifest.json"):
        open_writer(tmp_path)
    assert (tmp_path / FILES[3]).exists()


def test_finish_refuses_a_store_that_lacks_images(
    tmp_path: Path, open_writer: Callable, make_record: Callable
) -> None:
    with open_writer(tmp_path) as writer:
        for image_id in (1, 2, 5):
            writer.add(image_id, make_record(image_id))
        with pytest.raises(CacheError, match=r"lacks 2 of 5 images \(first ids: \[3, 4\]\)"):
            writer.finish()
        assert not Manifest.load(tmp_path).complete
        writer.add(3, make_record(3))
        writer.add(4, make_record(4))
        assert writer.finish().complete
    assert list(EmbeddingCache(tmp_path)) == list(IDS)


def test_a_finished_store_is_left_as_it_is(tmp_path: Path, build: Callable) -> None:
    before = {path: path.stat().st_mtime_ns for path in build(tmp_path).iterdir()}
    build(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_part_is_finished_without_being_complete(tmp_path: Path, build: Callable) -> None:
    whole = files_of(build(tmp_path / "whole"))
    for number, ids in ((1, [1, 2, 5]), (2, [3, 4])):
        path = build(tmp_path / f"part{number}", part=(number, 2))
        assert not Manifest.load(path).complete
        assert list(EmbeddingCache(path, allow_incomplete=True)) == ids
    build(tmp_path / "part1", part=(2, 2))  # the other part into the folder of the first
    assert files_of(tmp_path / "part1") == whole


def test_wrong_ids_and_values_are_refused(
    tmp_path: Path, open_writer: Callable, make_record: Callable
) -> None:
    with open_writer(tmp_path) as writer:
        writer.add(1, make_record(1))
        for wrong in (1, 77):  # there already; not of the data set
            with pytest.raises(ValueError, match=f"image {wrong} is not waited for in"):
                writer.add(wrong, make_record(1))
        for wrong in (-1, 2**63, "2", 2.0, True):
            with pytest.raises(ValueError, match=rf"image id {wrong!r}: expected whole numbers"):
                writer.add(wrong, make_record(1))
        embeddings = make_record(3)["embeddings"]
        embeddings[0, 0] = float("nan")
        with pytest.raises(ValueError, match="image 3: refused: .*embeddings are NaN"):
            writer.add(3, {**make_record(3), "embeddings": embeddings})
        writer.add(2, make_record(2))
    with pytest.raises(ValueError, match="image 3 is not waited for"):  # the block is left
        writer.add(3, make_record(3))
    assert list(EmbeddingCache(tmp_path, allow_incomplete=True)) == [1, 2]


def test_an_id_twice_and_other_images_are_refused_before_anything_is_written(
    tmp_path: Path, make_manifest: Callable, make_images: Callable, open_writer: Callable
) -> None:
    double = [*make_images(range(1, 5)), {**make_images([5])[0], "image_id": 2}]
    for images, message in (
        (double, "more than once, first: 2 of data/2.png and data/5.png"),
        (make_images(range(1, 5)), "these 4 images .* are not those of the store, the 5 "),
    ):
        with pytest.raises(CacheError, match=message):
            RecordWriter(tmp_path / "new", make_manifest(), images=images)
    assert not (tmp_path / "new").exists()


def test_a_store_that_another_build_has_finished_is_not_changed(
    tmp_path: Path, build: Callable, open_writer: Callable, make_record: Callable
) -> None:
    """Two at once: of a shard that both write either is valid; here they differ, as on a GPU."""
    with open_writer(tmp_path) as slow:
        whole = files_of(build(tmp_path))
        for image_id in slow.waiting_ids:
            slow.add(image_id, make_record(image_id, rows=2))
        slow.finish()
    assert files_of(tmp_path) == whole


def test_two_builds_at_once_make_one_sound_store(tmp_path: Path, build: Callable) -> None:
    whole = files_of(build(tmp_path / "whole"))
    path = tmp_path / "both"
    for _ in range(5):
        children = [fork(lambda: build(path)) for _ in range(3)]
        assert [exit_code(child) for child in children].count(0) >= 1
        build(path)
        assert files_of(path) == whole
        build(path, overwrite=True)


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
    tmp_path: Path, open_writer: Callable
) -> None:
    record = {
        "boxes": torch.tensor([0.0, 0, 1, 1]).repeat(300, 1),
        "objectness": torch.ones(300),
        "embeddings": torch.nn.functional.normalize(torch.ones(300, 512), dim=1),
    }

    def write() -> None:
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
        with open_writer(tmp_path, range(200), shard=8, embedding_dim=512) as writer:
            for image_id in writer.waiting_ids:  # 66 MB
                if image_id == 20:
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                writer.add(image_id, record)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 16 << 10, f"{after - before} KiB more"

    assert exit_code(fork(write)) == 0
