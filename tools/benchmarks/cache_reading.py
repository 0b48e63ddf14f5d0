"""What reading the cache costs: latency of a record, opening a store of LVIS's size, bytes.

Records of 300 proposals x 512 numbers, as for LVIS with CLIP ViT-B/32. The things to compare take
turns, so what slows the machine down for a while hits all of them.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.speed import Row
from ovd_d2.cache import DatasetInfo, EmbeddingCache, Manifest
from ovd_d2.cache.index import Index, build_index, write_index
from ovd_d2.cache.manifest import DTYPES, ShardInfo, shard_name
from ovd_d2.cache.records import data_bytes, encode_record, pack_shard, read_back
from ovd_d2.cache.shards import IMAGES_PER_SHARD as DEFAULT_IMAGES_PER_SHARD

LVIS_IMAGES = 100_170  # of LVIS v1 train
ROWS, DIM = 300, 512
IMAGES, IMAGES_PER_SHARD = 512, 8
READS, OPENINGS = 2000, 10
BURST = 25  # reads of one kind before it is the next one's turn
TOP_K = 100


def make_manifest(dtype: str, images: int = LVIS_IMAGES, dim: int = DIM) -> Manifest:
    """The manifest of a made-up store."""
    return Manifest(
        kind="embeddings",
        dataset=DatasetInfo("made_up", "0" * 16, images),
        proposals="made-up",
        teacher="made-up",
        embedding_dim=dim,
        dtype=dtype,
    )


def write_random_store(
    folder: Path,
    dtype: str,
    *,
    images: int = IMAGES,
    rows: int = ROWS,
    dim: int = DIM,
    images_per_shard: int = IMAGES_PER_SHARD,
    seed: int = 0,
) -> Path:
    """A finished cache of random boxes and random unit vectors; ids 0 to images - 1.

    Returns: `folder`.
    """
    manifest = make_manifest(dtype, images, dim)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    starts = range(0, images, images_per_shard)
    for start in tqdm(starts, f"write {dtype}", unit="shard"):
        ids = range(start, min(start + images_per_shard, images))
        records = [(i, encode_record(manifest, i, _record(rows, dim, generator))) for i in ids]
        path = folder / shard_name(images_per_shard, len(manifest.shards))
        path.write_bytes(pack_shard(records))
        manifest.shards.append(read_back(path, manifest.fields)[1])
    write_index(folder, manifest, build_index(folder, manifest))
    return folder


def write_sparse_store(
    folder: Path,
    dtype: str = "float16",
    *,
    images: int = LVIS_IMAGES,
    rows: int = ROWS,
    dim: int = DIM,
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD,
) -> Path:
    """A store that takes no space and opens like one of full size: its shards are holes.

    Manifest, index and the sizes of the shards are real; there is nothing to read in them.

    Returns: `folder`.
    """
    manifest = make_manifest(dtype, images, dim)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, images, images_per_shard):
        count = min(images_per_shard, images - start)
        file = shard_name(images_per_shard, len(manifest.shards))
        size = data_bytes(manifest.fields, count, count * rows)
        with (folder / file).open("wb") as stream:
            stream.truncate(size)
        manifest.shards.append(ShardInfo(file, count, count * rows, size, "0" * 64))
    ids = np.arange(images, dtype=np.int64)
    index = Index(
        image_ids=ids,
        shard=(ids // images_per_shard).astype(np.int32),
        start=ids % images_per_shard * rows,
        rows=np.full(images, rows, np.int32),
        checksums=np.random.default_rng(0).integers(-(2**63), 2**63 - 1, images),
    )
    write_index(folder, manifest, index)
    return folder


def measure() -> list[Row]:
    """All rows of this module, from stores in a temporary folder (0.6 GB)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {dtype: write_random_store(folder / dtype, dtype) for dtype in DTYPES}
        rows = [*bytes_an_image(), *read_latency(stores)]
        return [*rows, open_time(write_sparse_store(folder / "sparse"))]


def bytes_an_image(rows: int = ROWS, dim: int = DIM) -> list[Row]:
    """Stored bytes of an image by type, and of all of LVIS v1 train."""
    result = []
    for dtype in DTYPES:
        fields = make_manifest(dtype, dim=dim).fields
        total = data_bytes(fields, LVIS_IMAGES, LVIS_IMAGES * rows)
        result.append(
            {
                "name": f"{rows} x {dim}, {dtype}",
                "bytes_an_image": round(total / LVIS_IMAGES),
                "lvis_gib": round(total / 2**30, 2),
            }
        )
    return result


def read_latency(stores: Mapping[str, Path], reads: int = READS, seed: int = 0) -> list[Row]:
    """Random access in a warm page cache: microseconds, by stored type and by what is asked for.

    `copy` is the floor: the bytes of one record copied once. `raw` includes the comparison with the
    record's checksum; `read` also decodes to float32 unit rows.

    Args:
        stores: dtype -> folder of a finished cache.
        reads: random records that are timed for each.
    """
    things: dict[str, Callable[[int], None]] = {}
    for dtype, path in stores.items():
        cache = EmbeddingCache(path)
        ids = random.Random(seed).choices(list(cache), k=reads)
        for image_id in cache:  # warms the page cache
            cache.read_undecoded(image_id)
        things[f"{dtype} copy"] = partial(_copy, cache.read_undecoded(ids[0]))
        things[f"{dtype} raw"] = partial(_raw, cache, ids)
        things[f"{dtype} read"] = partial(_read, cache, ids, None)
        things[f"{dtype} read, top {TOP_K}"] = partial(_read, cache, ids, TOP_K)
    seconds = _time_alternately(things, reads)
    return [{"name": name, **_distribution(values)} for name, values in seconds.items()]


def open_time(path: Path, openings: int = OPENINGS) -> Row:
    """Seconds to open a cache, from nothing to an object that answers questions."""
    seconds = []
    for _ in tqdm(range(openings), "open", unit="time"):
        start = time.perf_counter()
        cache = EmbeddingCache(path)
        seconds.append(time.perf_counter() - start)
    size = sum(shard.bytes for shard in cache.manifest.shards) / 2**30
    return {
        "name": f"open {len(cache):,} images, {size:.1f} GiB",
        "open_seconds": round(float(np.median(seconds)), 4),
        "worst_seconds": round(max(seconds), 4),
    }


def table_of(rows: list[Row]) -> str:
    """Markdown: one table per kind of row."""
    kinds = ("bytes_an_image", "median_us", "open_seconds")
    tables = [[row for row in rows if kind in row] for kind in kinds]
    return "\n\n".join(tabulate(table, "keys", tablefmt="pipe") for table in tables if table)


def _record(rows: int, dim: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    corners = 380 * torch.rand(rows, 2, generator=generator)  # inside images of 640 x 480
    sides = 100 * torch.rand(rows, 2, generator=generator)
    units = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    return {
        "boxes": torch.cat([corners, corners + sides], dim=1),
        "objectness": torch.rand(rows, generator=generator).sort(descending=True).values,
        "embeddings": units,
    }


def _time_alternately(
    things: Mapping[str, Callable[[int], None]], reads: int
) -> dict[str, list[float]]:
    """Seconds of every single read; bursts, as a read of another kind empties the CPU's caches."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for first in tqdm(range(0, reads, BURST), "reads", unit="burst"):
        for name, thing in things.items():
            for number in range(first, min(first + BURST, reads)):
                start = time.perf_counter()
                thing(number)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _copy(record: dict[str, NDArray], _: int) -> None:
    for values in record.values():
        values.copy()


def _raw(cache: EmbeddingCache, ids: list[int], number: int) -> None:
    cache.read_undecoded(ids[number])


def _read(cache: EmbeddingCache, ids: list[int], top_k: int | None, number: int) -> None:
    cache.read(ids[number], top_k)


def _distribution(seconds: list[float]) -> dict[str, Any]:
    median, p90, p99 = (1e6 * np.percentile(seconds, [50, 90, 99])).round(1).tolist()
    return {"median_us": median, "p90_us": p90, "p99_us": p99}
