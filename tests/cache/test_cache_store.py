from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovd_d2.cache import (
    CachedProposals,
    CacheError,
    EmbeddingCache,
    Manifest,
    ProposalStore,
    dataset_fingerprint,
)
from tests.attacks.hostile import DEEP_JSON, sign_manifest
from tests.processes import exit_code, fork
from tests.programs import SERVER


def read_boxes(cache: EmbeddingCache, image_id: int) -> list:
    return cache[image_id].boxes.tolist()


def test_round_trip(tmp_path: Path, build: Callable, make_record: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path, range(7, 0, -1)))
    assert len(cache) == 7
    assert list(cache) == [1, 2, 3, 4, 5, 6, 7]
    for image_id in cache:
        written, read = make_record(image_id), cache[image_id]
        assert len(read) == image_id % 4
        assert torch.equal(read.boxes, written["boxes"])
        assert torch.equal(read.objectness, written["objectness"])
        assert read.embeddings is not None
        assert read.embeddings.dtype == torch.float32
        # fp16 keeps 11 bits of a component of at most 1.
        torch.testing.assert_close(read.embeddings, written["embeddings"], atol=2**-11, rtol=0)
        norms = read.embeddings.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(len(read)), atol=1e-6, rtol=0)


def test_a_store_of_nothing_but_empty_images(tmp_path: Path, build: Callable) -> None:
    build(tmp_path, [4, 8])
    assert [len(EmbeddingCache(tmp_path)[image_id]) for image_id in (4, 8)] == [0, 0]
    assert EmbeddingCache(tmp_path).verify() == []


def test_proposal_store_has_no_embeddings(
    tmp_path: Path, build: Callable, make_record: Callable
) -> None:
    store = ProposalStore(build(tmp_path, kind="proposals"))
    assert store[3].embeddings is None
    assert torch.equal(store[3].boxes, make_record(3, "proposals")["boxes"])


def test_membership_and_unknown_ids(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    assert 3 in cache
    assert np.int64(3) in cache
    for stranger in (0, 6, -1, 2**70, "3", None, 3.0):
        assert stranger not in cache
    with pytest.raises(KeyError, match="image 6 is not in"):
        cache[6]


def test_changing_a_read_record_changes_nothing_else(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))

    def values() -> list[torch.Tensor]:
        record = cache[3]
        assert record.embeddings is not None
        return [record.boxes, record.objectness, record.embeddings]

    before = [value.clone() for value in values()]
    for value in values():
        value.zero_()
    assert all(torch.equal(*pair) for pair in zip(before, values(), strict=True))


def test_fp32_storage_is_exact_up_to_normalisation(
    tmp_path: Path, build: Callable, make_record: Callable
) -> None:
    read = EmbeddingCache(build(tmp_path, dtype="float32"))[3].embeddings
    torch.testing.assert_close(read, make_record(3)["embeddings"], atol=2e-7, rtol=0)


def test_no_file_descriptor_stays_open(tmp_path: Path, build: Callable) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    cache = EmbeddingCache(build(tmp_path))
    for image_id in cache:
        cache[image_id]
    targets = [str(path.readlink()) for path in folder.iterdir() if path.exists()]
    assert not [target for target in targets if target.startswith(str(tmp_path))]


def test_a_forked_process_reads(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    expected = cache[3]

    def check() -> None:
        assert torch.equal(cache[3].boxes, expected.boxes)

    assert exit_code(fork(check)) == 0


def test_threads_read_side_by_side(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path, range(1, 40)))
    ids = [1 + i % 39 for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda image_id: cache[image_id].boxes, ids))
    assert all(torch.equal(a, cache[i].boxes) for a, i in zip(threaded, ids, strict=True))


def test_a_process_that_shares_nothing_reads(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    with SERVER.Pool(1) as pool:
        assert pool.apply(read_boxes, (cache, 3)) == cache[3].boxes.tolist()


def test_an_unfinished_store_is_refused_unless_asked_for(
    tmp_path: Path, open_writer: Callable, make_record: Callable
) -> None:
    with open_writer(tmp_path) as writer:
        for image_id in (1, 2, 5):
            writer.add(image_id, make_record(image_id))
    with pytest.raises(CacheError, match="unfinished: 3 of 5 images .*tools/cache.py build again"):
        EmbeddingCache(tmp_path)
    assert list(EmbeddingCache(tmp_path, allow_incomplete=True)) == [1, 2, 5]


def test_the_other_kind_is_refused(tmp_path: Path, build: Callable) -> None:
    build(tmp_path, kind="proposals")
    with pytest.raises(CacheError, match="holds proposals, expected embeddings"):
        EmbeddingCache(tmp_path)


def test_a_folder_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no record store in .*manifest.json is missing"):
        EmbeddingCache(tmp_path / "nowhere")


def test_a_missing_shard_is_named_with_the_fix(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (tmp_path / "shard-n002-00001.safetensors").unlink()
    with pytest.raises(CacheError, match="shard-n002-00001.safetensors is missing.*cache.py build"):
        EmbeddingCache(tmp_path)
    with pytest.raises(CacheError, match="shard-n002-00001.safetensors is missing"):
        cache[3]  # opened before the loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99, this ovd_d2 reads version 2"),
        ({"kind": "boxes"}, "damaged .*kind is 'boxes'"),
        ({"surplus": 1}, "damaged .*surplus"),
        (
            {
                "shards": [
                    {"file": "../x.safetensors", "images": 1, "rows": 1, "bytes": 1, "sha256": ""}
                ]
            },
            "plain",
        ),
        ({"shards": None}, "damaged"),
        ({"dataset": None}, "damaged"),
    ],
)
def test_a_bad_manifest_is_named(
    tmp_path: Path,
    build: Callable,
    change: dict[str, object],
    message: str,
) -> None:
    sign_manifest(build(tmp_path), lambda content: content.update(change))
    with pytest.raises(CacheError, match=f"manifest.json.*{message}"):
        EmbeddingCache(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00\x00", DEEP_JSON, "NaN"])
def test_a_garbled_manifest_is_named(tmp_path: Path, build: Callable, text: str) -> None:
    (build(tmp_path) / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match="manifest.json"):
        EmbeddingCache(tmp_path)


def test_manifest_round_trip(tmp_path: Path, build: Callable) -> None:
    manifest = Manifest.load(build(tmp_path))
    manifest.save(tmp_path / "copy")
    assert Manifest.load(tmp_path / "copy") == manifest
    assert manifest.differences(Manifest.load(tmp_path / "copy")) == []
    assert (manifest.num_images, manifest.num_rows) == (5, 7)


def test_fingerprint_follows_the_content_alone(
    tmp_path: Path, build: Callable, make_manifest: Callable, make_record: Callable
) -> None:
    first = EmbeddingCache(build(tmp_path / "a")).fingerprint
    for size in (1, 3, 64):
        assert EmbeddingCache(build(tmp_path / f"b{size}", shard=size)).fingerprint == first
    other = build(tmp_path / "c", record=lambda image_id, kind: make_record(image_id, rows=2))
    assert EmbeddingCache(other).fingerprint != first
    with pytest.raises(CacheError, match="unfinished, .*no fingerprint yet"):
        _ = make_manifest().fingerprint


def test_paths_go_through_the_path_manager(
    tmp_path: Path, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ovd_d2.data.paths")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    build("datasets://caches/toy")
    assert (tmp_path / "caches" / "toy" / "manifest.json").exists()
    assert len(EmbeddingCache("datasets://caches/toy")) == 5


def test_dataset_fingerprint_knows_images_not_places() -> None:
    images: list[dict[str, Any]] = [
        {"image_id": 1, "file_name": "/old/a.png", "height": 4, "width": 5},
        {"image_id": 2, "file_name": "/old/b.png", "height": 4, "width": 5},
    ]
    moved = [{**entry, "file_name": entry["file_name"].replace("/old", "/new")} for entry in images]
    assert dataset_fingerprint(moved[::-1]) == dataset_fingerprint(images)
    assert dataset_fingerprint([{**images[0], "annotations": [1]}, images[1]]) == (
        dataset_fingerprint(images)
    )
    for key, value in {"image_id": 3, "file_name": "c.png", "height": 9, "width": 9}.items():
        assert dataset_fingerprint([{**images[0], key: value}, images[1]]) != (
            dataset_fingerprint(images)
        )
    assert dataset_fingerprint(images[:1]) != dataset_fingerprint(images)


def test_proposals_that_do_not_fit_each_other_are_refused() -> None:
    boxes, objectness = torch.zeros(2, 4), torch.zeros(2)
    with pytest.raises(ValueError, match="expected"):
        CachedProposals(boxes, torch.zeros(3))
    with pytest.raises(ValueError, match="expected"):
        CachedProposals(torch.zeros(2, 5), objectness)
    for wrong in (torch.zeros(3, 8), torch.zeros(2), torch.zeros(2, 8, 1)):
        with pytest.raises(ValueError, match=r"embeddings .* expected \(2, "):
            CachedProposals(boxes, objectness, wrong)
