"""Merging stores: what fits is joined bit for bit, what does not is refused with every reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovd_d2.cache import (
    CacheError,
    DatasetInfo,
    EmbeddingCache,
    Manifest,
    ProposalStore,
    dataset_fingerprint,
)
from ovd_d2.cache.identity import IMAGES_FILE, load_image_list
from ovd_d2.cache.merge import merge_stores
from ovd_d2.cache.store import open_store
from tests.processes import CRASHED, die_at, exit_code, fork
from tests.proposal_stores import files_of

IDS = range(1, 10)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, build: Callable[..., Path], make_images: Callable[..., list]) -> Write:
    """`write(name, ids)`: a finished store of the data set `of`, or its part (i, n)."""

    def run(
        name: str, ids: Iterable[int] = IDS, *, of: str = "toy_train", height: int = 41, **rest: Any
    ) -> Path:
        images = make_images(ids, height=height)
        info = DatasetInfo(of, dataset_fingerprint(images), len(images))
        return build(tmp_path / name, ids, dataset=info, height=height, **rest)

    return run


@pytest.fixture
def parts(write: Write) -> list[Path]:
    """Of nine images in five shards: four, three and two of them."""
    return [write(name, part=(k, 3)) for k, name in enumerate("abc", 1)]


def content(path: Path) -> dict[int, list[bytes]]:
    store = open_store(path)
    return {one: [value.tobytes() for value in store.read_undecoded(one).values()] for one in store}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_parts_become_the_store_that_one_build_makes(
    write: Write, tmp_path: Path, dtype: str
) -> None:
    sources = [write(name, part=(k, 3), dtype=dtype) for k, name in enumerate("abc", 1)]
    whole = write("whole", dtype=dtype)
    before = [files_of(source) for source in sources]
    summary = merge_stores(sources, tmp_path / "merged", images_per_shard=2, progress=False)
    assert (summary.written.manifest.num_images, summary.duplicates) == (9, 0)
    assert files_of(summary.written.path) == files_of(whole)
    assert [files_of(source) for source in sources] == before
    other = merge_stores(sources, tmp_path / "other", progress=False)  # all in one shard
    assert content(other.written.path) == content(whole)
    assert EmbeddingCache(other.written.path).fingerprint == EmbeddingCache(whole).fingerprint


def test_proposal_stores_are_merged_too(write: Write, tmp_path: Path) -> None:
    sources = [write(name, kind="proposals", part=(k, 2)) for k, name in enumerate("ab", 1)]
    merge_stores(sources, tmp_path / "merged", progress=False)
    assert list(ProposalStore(tmp_path / "merged")) == list(IDS)


def test_stores_of_two_data_sets_become_one(write: Write, tmp_path: Path) -> None:
    a = write("a", range(5), of="first", proposals="x")
    b = write("b", range(100, 103), of="second", proposals="y")
    summary = merge_stores([a, b], tmp_path / "merged", progress=False)
    merged = EmbeddingCache(tmp_path / "merged")
    assert summary.written.manifest.num_images == len(merged) == 8
    assert merged.manifest.dataset.name == "first+second"
    assert merged.manifest.dataset.num_images == 8
    assert merged.manifest.proposals.startswith("merged-")
    assert content(merged.path) == {**content(a), **content(b)}
    listed = load_image_list(merged.path, merged.manifest.dataset)
    assert listed is not None and list(listed) == list(merged)
    images = [{"image_id": image_id, **one._asdict()} for image_id, one in listed.items()]
    assert merged.manifest.dataset.fingerprint == dataset_fingerprint(images)
    backwards = merge_stores([b, a], tmp_path / "backwards", progress=False)
    assert EmbeddingCache(backwards.written.path).fingerprint == merged.fingerprint


def test_ids_that_mean_other_images_in_another_data_set_are_refused(
    write: Write, tmp_path: Path
) -> None:
    a = write("a", [4, 8], of="first")
    b = write("b", [8, 12], of="second", height=99)  # 8 and 12 have no proposals
    with pytest.raises(CacheError, match="1 ids mean one image in data set '.*first: image 8 is"):
        merge_stores([a, b], tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


def test_data_sets_that_do_not_name_their_images_are_refused(write: Write, tmp_path: Path) -> None:
    a, b = write("a", [4], of="first"), write("b", [8], of="second")
    (b / IMAGES_FILE).unlink()
    with pytest.raises(CacheError, match=f"{b} does not say .*add-image-list {b} --dataset second"):
        merge_stores([a, b], tmp_path / "merged", progress=False)


def test_images_that_two_data_sets_share_are_stored_once(write: Write, tmp_path: Path) -> None:
    a = write("a", range(5), of="first")
    b = write("b", range(3, 7), of="second")
    summary = merge_stores([a, b], tmp_path / "merged", progress=False)
    assert (summary.written.manifest.num_images, summary.duplicates) == (7, 2)
    assert EmbeddingCache(tmp_path / "merged").verify() == []


def test_a_merged_store_can_be_merged_again(write: Write, tmp_path: Path) -> None:
    for k, name in enumerate("abc"):
        ids = range(10 * k, 10 * k + 3)
        write(name, ids, of=name)
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", progress=False)
    merge_stores([tmp_path / "ab", tmp_path / "c"], tmp_path / "abc", progress=False)
    merged = EmbeddingCache(tmp_path / "abc")
    assert merged.manifest.dataset.name == "a+b+c"
    assert len(merged) == 9


def test_every_reason_is_given_at_once_and_nothing_is_written(
    write: Write, tmp_path: Path, make_record: Callable[..., dict[str, torch.Tensor]]
) -> None:
    def moved(image_id: int, kind: str) -> dict[str, torch.Tensor]:
        record = make_record(image_id)
        return {**record, "boxes": record["boxes"] + 1}

    other = {"teacher": "Toy-RN-9999", "dtype": "float32", "recipe": {"scales": [1.0]}}
    a = write("a", range(1, 7), of="first")
    b = write("b", range(5, 9), of="second", record=moved, part=(1, 2), **other)
    with pytest.raises(CacheError) as caught:
        merge_stores([a, b], tmp_path / "merged", progress=False)
    message = str(caught.value)
    assert f"teacher: 'Toy-RN-0123' in {a}; 'Toy-RN-9999' in {b}" in message
    assert f"dtype: 'float16' in {a}; 'float32' in {b}" in message
    assert "recipe: {'scales': [1.0, 1.5]}" in message
    assert f"2 images have different content in {a} and {b} (first ids: [5, 6])" in message
    assert "2 of 8 images are in no source (first ids: [7, 8])" in message
    assert not (tmp_path / "merged").exists()


def test_parts_from_other_proposals_are_refused(write: Write, tmp_path: Path) -> None:
    a, b = (write(name, proposals=name, part=(k, 2)) for k, name in enumerate("xy", 1))
    with pytest.raises(CacheError, match="proposals of 'toy_train': 'x' in"):
        merge_stores([a, b], tmp_path / "merged", progress=False)


def test_a_missing_part_is_noticed(parts: list[Path], tmp_path: Path) -> None:
    message = r"2 of 9 images are in no source \(first ids: \[5, 6\]\): is a part missing"
    with pytest.raises(CacheError, match=message):
        merge_stores(parts[:2], tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


def test_what_is_no_list_of_sources_is_refused(
    write: Write, parts: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match="at least two stores"):
        merge_stores(parts[:1], tmp_path / "merged")
    with pytest.raises(CacheError, match="a store is named twice"):
        merge_stores([*parts, parts[0]], tmp_path / "merged")
    with pytest.raises(CacheError, match="is a source"):
        merge_stores(parts, parts[0], overwrite=True)
    with pytest.raises(CacheError, match="no record store in"):
        merge_stores([*parts, tmp_path / "nothing"], tmp_path / "merged")
    with pytest.raises(CacheError, match="kind: "):
        merge_stores([parts[0], write("p", kind="proposals")], tmp_path / "merged")


def test_a_damaged_source_is_named_and_the_merge_goes_on_once_it_is_repaired(
    parts: list[Path], tmp_path: Path
) -> None:
    path = sorted(parts[1].glob("shard-*"))[0]
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[-3] ^= 1  # in a field: the header and the index stay as they are
    path.write_bytes(damaged)
    with pytest.raises(CacheError, match=f"{path} is damaged: the record of image"):
        merge_stores(parts, tmp_path / "merged", images_per_shard=1, progress=False)
    with pytest.raises(CacheError, match="unfinished"):
        EmbeddingCache(tmp_path / "merged")
    path.write_bytes(sound)
    summary = merge_stores(parts, tmp_path / "merged", images_per_shard=1, progress=False)
    assert 0 < summary.written.images_written < 9
    assert EmbeddingCache(tmp_path / "merged").verify() == []


def test_a_merge_that_dies_at_any_step_never_looks_finished(
    parts: list[Path], tmp_path: Path
) -> None:
    expected = content(merge_stores(parts, tmp_path / "undisturbed", progress=False).written.path)
    sources = [files_of(part) for part in parts]
    step, code = 0, CRASHED
    while code == CRASHED:
        target = tmp_path / f"at{step}"

        def merge(target: Path = target, step: int = step) -> None:
            die_at(step)
            merge_stores(parts, target, images_per_shard=4, progress=False)

        code = exit_code(fork(merge))
        if code == CRASHED and (target / "manifest.json").exists():
            found = Manifest.load(target)
            assert not found.complete or content(target) == expected
        merge_stores(parts, target, images_per_shard=4, progress=False)
        assert content(target) == expected
        step += 3
    assert code == 0
    assert step > 20
    assert [files_of(part) for part in parts] == sources


def test_a_finished_merge_has_nothing_left_to_do(parts: list[Path], tmp_path: Path) -> None:
    merge_stores(parts, tmp_path / "merged", progress=False)
    before = files_of(tmp_path / "merged")
    assert merge_stores(parts, tmp_path / "merged", progress=False).written.images_written == 0
    assert files_of(tmp_path / "merged") == before


def test_a_merge_of_other_sources_into_the_folder_is_refused(
    write: Write, parts: list[Path], tmp_path: Path
) -> None:
    merge_stores(parts, tmp_path / "merged", progress=False)
    a, b = write("x", range(3), of="x"), write("y", range(3, 5), of="y")
    with pytest.raises(CacheError, match="was built with other settings"):
        merge_stores([a, b], tmp_path / "merged", progress=False)
    merge_stores([a, b], tmp_path / "merged", overwrite=True, progress=False)
    assert list(EmbeddingCache(tmp_path / "merged")) == [0, 1, 2, 3, 4]
