"""docs/cache-format.md is enough to write a reader.

The reader here is written from the document, with nothing of ovd_d2 and without safetensors.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from benchmarks.cache_reading import ROWS, bytes_an_image, write_random_store

from ovd_d2.cache import EmbeddingCache, Manifest, ProposalStore
from ovd_d2.cache.identity import load_image_list

PAGE = Path(__file__).parents[2] / "docs" / "cache-format.md"
TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "I32": "<i4", "I64": "<i8"}


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = (begin + offset for offset in entry["data_offsets"])
        values = np.frombuffer(content[first:last], TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def records_of(folder: Path) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    text = (folder / "manifest.json").read_bytes()
    assert text[-68:-4].decode() == hashlib.sha256(text[:-68]).hexdigest()
    manifest = json.loads(text)
    assert manifest["schema_version"] == 2
    index_file = (folder / "index.safetensors").read_bytes()
    assert manifest["index"]["sha256"] == hashlib.sha256(index_file).hexdigest()
    index = tensors_of(folder / "index.safetensors")
    content = index["image_ids"].tobytes() + index["checksums"].tobytes()
    assert manifest["index"]["content"] == hashlib.sha256(content).hexdigest()
    for row, image_id in enumerate(index["image_ids"].tolist()):
        shard = tensors_of(folder / manifest["shards"][index["shard"][row]]["file"])
        start, stop = index["start"][row], index["start"][row] + index["rows"][row]
        names = ("boxes", "objectness", "embeddings", "scales")
        record = {name: shard[name][start:stop] for name in names if name in shard}
        stored = b"".join(values.tobytes() for values in record.values())
        digest = xxhash.xxh3_64_digest(image_id.to_bytes(8, "little", signed=True) + stored)
        assert int.from_bytes(digest, "big", signed=True) == index["checksums"][row]
        if "embeddings" in record:
            rows = record["embeddings"].astype(np.float32)
            rows = rows * record["scales"][:, None] if "scales" in record else rows
            record["embeddings"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        yield image_id, record


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_reader_written_from_the_document(tmp_path: Path, dtype: str) -> None:
    write_random_store(tmp_path, dtype, images=5, rows=4, dim=16, images_per_shard=2)
    cache = EmbeddingCache(tmp_path)
    read = dict(records_of(tmp_path))
    assert list(read) == list(cache)
    for image_id, record in read.items():
        ours = cache[image_id]
        assert ours.embeddings is not None
        np.testing.assert_array_equal(record["boxes"], ours.boxes.numpy())
        np.testing.assert_array_equal(record["objectness"], ours.objectness.numpy())
        np.testing.assert_allclose(record["embeddings"], ours.embeddings.numpy(), atol=3e-7)


def test_proposals_and_images_without_any(
    tmp_path: Path, build: Callable, make_record: Callable
) -> None:
    store = ProposalStore(build(tmp_path, range(9, 2, -1), kind="proposals"))
    read = dict(records_of(tmp_path))
    assert list(read) == list(store) == [3, 4, 5, 6, 7, 8, 9]
    for image_id, record in read.items():
        assert set(record) == {"boxes", "objectness"}
        assert torch.equal(torch.tensor(record["boxes"]), make_record(image_id)["boxes"])


def images_of(folder: Path) -> dict[int, tuple[str, int | None, int | None]]:
    dataset = json.loads((folder / "manifest.json").read_text())["dataset"]
    content = (folder / "images.json").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == dataset["fingerprint"]
    rows = json.loads(content)
    assert len(rows) == dataset["num_images"]
    return {image_id: (name, height, width) for image_id, name, height, width in rows}


def test_the_list_of_images(tmp_path: Path, build: Callable) -> None:
    build(tmp_path, range(9, 6, -1), kind="proposals")
    expected = {one: (f"{one}.png", 41, 33) for one in (7, 8, 9)}
    assert images_of(tmp_path) == expected
    assert load_image_list(tmp_path, Manifest.load(tmp_path).dataset) == expected


def test_the_sizes_in_the_document() -> None:
    (line,) = re.findall(r"An image of 300 proposals.*?3\.2 MB\.", PAGE.read_text(), re.DOTALL)
    for row in bytes_an_image(ROWS):
        assert f"{row['bytes_an_image']:,}" in line
        assert f"{row['lvis_gib']:.1f}" in line


def test_the_order_of_reading_in_the_document() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)  # noqa: S102 (our own page)
    ids = list(range(100, 200))
    order = names["windowed_shuffle"](ids, 30, random.Random(0))
    assert sorted(order) == ids
    assert order != ids
    windows = Counter((image_id - 100) // 30 for image_id in order[:30])
    assert len(windows) <= 2  # a window is finished before the next one begins
