"""Caches and proposals come from elsewhere; what is hostile in one never reaches a training.

Every file is signed: checksums protect from accidents, not from whoever computed them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.cache_reading import write_random_store
from cache_import.convert import convert_cache
from cache_import.layouts import DetProLayout
from safetensors.numpy import load, save

from ovd_d2.analysis.cache_info import store_info
from ovd_d2.cache import EmbeddingCache, Manifest, check_compatible, verify_store
from ovd_d2.cache.index import build_index, write_index
from ovd_d2.cache.manifest import CacheError
from ovd_d2.cache.records import open_shard, pack_shard, read_back
from ovd_d2.cache.shards import delete_store
from tests.attacks.hostile import (
    DEEP_JSON,
    DIGITS,
    refused,
    running_pickle,
    safetensors,
    sign_manifest,
    sign_text,
)

FIRST = "shard-n002-00000.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of the images 0 to 4, two in a shard."""
    return write_random_store(
        tmp_path / "cache", "float16", images=5, rows=4, dim=16, images_per_shard=2
    )


def read_all(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    for image_id in cache:
        cache[image_id]


def refused_everywhere(folder: Path, *named: object) -> None:
    """By reading and by `verify`, and `info` says what it can without a traceback."""
    refused(lambda: read_all(folder), folder, *named)
    assert verify_store(folder)
    try:
        store_info(folder)
    except CacheError as error:
        assert str(folder) in str(error)


def test_the_cache_itself_is_sound(folder: Path) -> None:
    read_all(folder)
    assert verify_store(folder) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/dev/zero",
        f"../cache/{FIRST}",
        f"{FIRST}/../{FIRST}",
        f"{FIRST}\x00.txt",
        "manifest.json",
        "x" * 100_000,
        ["a"],
    ],
    ids=range(8),
)
def test_shard_names_that_lead_elsewhere(folder: Path, name: Any) -> None:
    sign_manifest(folder, lambda content: content["shards"][0].update(file=name))
    refused_everywhere(folder, "is not a plain name")


COUNTS: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "images of a shard": lambda content, count: content["shards"][0].update(images=count),
    "rows of a shard": lambda content, count: content["shards"][0].update(rows=count),
    "bytes of a shard": lambda content, count: content["shards"][0].update(bytes=count),
    "bytes of the index": lambda content, count: content["index"].update(bytes=count),
    "images": lambda content, count: content["dataset"].update(num_images=count),
    "width": lambda content, count: content.update(embedding_dim=count),
}


@pytest.mark.parametrize("count", [2**62, 2**200, -1, 1.5, True, "7", None, [2**62]], ids=str)
@pytest.mark.parametrize("where", COUNTS)
def test_counts_of_anything(folder: Path, where: str, count: Any) -> None:
    sign_manifest(folder, lambda content: COUNTS[where](content, count))
    refused_everywhere(folder)


VALUES = {
    "brackets": DEEP_JSON,
    "some brackets": "[" * 400 + "]" * 400,
    "digits": DIGITS,
    "infinity": "1e400",
    "NaN": "NaN",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_recipes_that_no_json_writer_makes(folder: Path, value: str) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    assert '"recipe": {}' in text
    signed = text[: text.rindex('"checksum"')] + '"checksum": ""\n}'
    sign_text(path, signed.replace('"recipe": {}', f'"recipe": {{"x": {value}}}'))
    refused_everywhere(folder)


def change_index(folder: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    stored = load((folder / "index.safetensors").read_bytes())
    tensors = {key: value.copy() for key, value in stored.items()}
    change(tensors[name])
    content = save(tensors)
    (folder / "index.safetensors").write_bytes(content)
    identity = tensors["image_ids"].tobytes() + tensors["checksums"].tobytes()
    info = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "content": hashlib.sha256(identity).hexdigest(),
    }
    sign_manifest(folder, lambda manifest: manifest.update(index=info))


@pytest.mark.parametrize("name", ["shard", "start", "rows", "image_ids"])
@pytest.mark.parametrize("value", [-1, 2**31 - 1, 77])
def test_an_index_that_points_elsewhere(folder: Path, name: str, value: int) -> None:
    change_index(folder, name, lambda values: values.__setitem__(1, value))
    refused_everywhere(folder)


def replace_file(folder: Path, file: str, content: bytes) -> None:
    """With size and SHA-256 in the manifest that fit."""
    (folder / file).write_bytes(content)
    signed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sign_manifest(folder, lambda manifest: manifest["shards"][0].update(signed))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 5_000,
        safetensors({"boxes": {"dtype": "F32", "shape": [2**40, 4], "data_offsets": [0, 2**44]}}),
        safetensors(DEEP_JSON.encode()),
        (2**60).to_bytes(8, "little") + b"{}",
    ],
    ids=["nothing", "garbage", "terabytes", "brackets", "a header of exabytes"],
)
def test_shards_that_are_none(folder: Path, content: bytes) -> None:
    replace_file(folder, FIRST, content)
    refused_everywhere(folder, FIRST)


def test_a_pickle_as_a_shard(folder: Path, marker: Path) -> None:
    replace_file(folder, FIRST, running_pickle(marker))
    refused_everywhere(folder, FIRST)


@pytest.mark.parametrize("file", ["manifest.json", "index.safetensors", "images.json", FIRST])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_that_never_end(folder: Path, file: str, kind: str) -> None:
    (folder / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).symlink_to("/dev/zero")
    if file == "images.json":
        images = [{"image_id": 1, "file_name": "1.png", "height": 5, "width": 5}]
        needs = {"teacher_fingerprint": "made-up", "embedding_dim": 16}
        (problem,) = check_compatible(EmbeddingCache(folder), images=images, **needs)
        assert "images.json is damaged (it is not a plain file)" in problem
        assert verify_store(folder)
    else:
        refused_everywhere(folder, file)


LISTS = {
    "brackets": DEEP_JSON,
    "digits": f"[[{DIGITS}, \"a\", 1, 1]]",
    "a number": "7",
    "nothing": "",
    "other rows": "[[0],[1]]",
    "ids that are texts": '[["0","a",1,1]]',
    "names that are lists": '[[0,["a"],1,1]]',
    "sizes that are texts": '[[0,"a","1",1]]',
    "other images": '[[0,"a",1,1]]',
    "an object": '{"abcd":1}',
}  # fmt: skip


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_lists_of_images_that_are_none(folder: Path, text: str) -> None:
    (folder / "images.json").write_text(text)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    sign_manifest(folder, lambda content: content["dataset"].update(fingerprint=fingerprint))
    images = [{"image_id": 1, "file_name": "1.png", "height": 5, "width": 5}]
    (problem,) = check_compatible(
        EmbeddingCache(folder), teacher_fingerprint="made-up", embedding_dim=16, images=images
    )
    assert "images.json is damaged" in problem
    assert len(problem) < 2_000
    assert verify_store(folder)


WRONG = {
    "NaN": ("boxes", float("nan")),
    "infinity": ("boxes", float("inf")),
    "backwards": ("boxes", -1e30),
    "objectness": ("objectness", 1e30),
    "NaN objectness": ("objectness", float("nan")),
    "NaN embeddings": ("embeddings", float("nan")),
}


@pytest.mark.parametrize(("field", "value"), WRONG.values(), ids=WRONG)
def test_values_that_would_become_a_loss_of_nan(folder: Path, field: str, value: float) -> None:
    manifest = Manifest.load(folder)
    shard = open_shard(folder / FIRST, manifest.fields)
    ids, bounds = shard["image_ids"].tolist(), shard["offsets"].tolist()
    records = [
        (one, {name: shard[name][bounds[k] : bounds[k + 1]].clone() for name in manifest.fields})
        for k, one in enumerate(ids)
    ]
    records[1][1][field].view(4, -1)[2, -1] = value
    (folder / FIRST).write_bytes(pack_shard(records))
    shards = [read_back(folder / FIRST, manifest.fields)[1], *manifest.shards[1:]]
    manifest = replace(manifest, shards=shards, index=None)
    write_index(folder, manifest, build_index(folder, manifest))
    refused_everywhere(folder, "the record of image 1 holds what no builder writes")


def test_overwrite_deletes_nothing_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a.safetensors").write_text("precious")
    (folder / "building").symlink_to(tmp_path / "precious")
    (folder / "shard-n002-00009.safetensors").symlink_to(tmp_path / "precious" / "a.safetensors")
    with contextlib.suppress(OSError):  # refusing is right, too
        delete_store(folder)
    assert (tmp_path / "precious" / "a.safetensors").read_text() == "precious"


def test_proposals_of_another_project_that_run_code(tmp_path: Path, marker: Path) -> None:
    embeddings = tmp_path / "train"
    embeddings.mkdir()
    torch.save(torch.zeros(1, 16), embeddings / "1.jpg.pth")
    (tmp_path / "proposals.pkl").write_bytes(running_pickle(marker))
    annotations = tmp_path / "train.json"
    annotations.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}]}))
    images = [{"image_id": 1, "file_name": "1.jpg", "height": 9, "width": 9}]

    def convert() -> None:
        layout = DetProLayout(embeddings, tmp_path / "proposals.pkl", annotations)
        convert_cache(
            images, layout, tmp_path / "out", dataset_name="x", teacher="t-1", embedding_dim=16
        )  # fmt: skip

    refused(convert, "proposals.pkl")
    assert not (tmp_path / "out").exists()
