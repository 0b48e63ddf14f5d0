"""Everything about the cache in one run, as one list of rows, one table and one page."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks import (
    cache_building,
    cache_dense,
    cache_kills,
    cache_loading,
    cache_memory,
    cache_reading,
)
from benchmarks.documents import Document, origin
from benchmarks.speed import Row


def measure(
    device: str, architecture: str | None = None, kills: int = cache_kills.KILLS
) -> list[Row]:
    """Building (see `cache_building.workloads`), by crops beside out of dense maps, then loading,
    reading, memory and kills.
    """
    works = cache_building.workloads(device, architecture)
    built = [cache_building.measure(work) for work in works]
    if architecture is None:  # which may be no ViT
        built.append(cache_dense.measure(cache_dense.workload(device)))
    read = [*cache_loading.measure(), *cache_reading.measure(), *cache_memory.measure()]
    return [*built, *read, cache_kills.measure(kills), machine()]


def machine() -> Row:
    """Where the numbers come from."""
    return {"name": "machine", "processors": os.cpu_count()}


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: building, dense maps, loading, reading, memory, kills."""
    parts = (cache_building, cache_dense, cache_loading, cache_reading, cache_memory, cache_kills)
    return "\n\n".join(filter(None, (part.table_of(list(rows)) for part in parts)))


def page(document: Document) -> str:
    """docs/results-cache.md."""
    rows = document["rows"]
    processors = next(row["processors"] for row in rows if "processors" in row)
    return f"""# The embedding cache in numbers

Measured on a machine with {processors} processor cores. {origin(document)}; numbers:
[results/cache.json](results/cache.json). Pictures, proposals and embeddings are made up, of the
sizes that LVIS has. Things that are compared took turns; a ratio is the median over the rounds.

## Building

`of bare forward`: crops per second of `build_cache` over those of the teacher's forward pass alone,
on batches of the same size, with all threads that PyTorch takes; 1.00 is the floor that no pipeline
can pass, unless several batches side by side use the cores better than one does. `over naive`: over
decoding an image, taking every crop through open_clip's transform (Pillow), one after the other,
and encoding them in such batches; `forward over naive` is the most that any pipeline could reach.
`hours for LVIS`: 100,170 images with 300 proposals at two scales, by this machine alone. The shares
are those of each stage run alone by one thread.

{cache_building.table_of(rows)}

{_dense_section(rows)}## Loading a training image

A 640 x 480 JPEG with 12 polygons, large-scale jitter to 1,024 pixels, with and without 300 cached
proposals x 512.

{cache_loading.table_of(rows)}

## Reading, size, opening

`copy` copies the bytes of a record once: the floor. `raw` finds the record and compares its
checksum; `read` also decodes to float32 unit rows.

{cache_reading.table_of(list(rows))}

## Memory

Resident set of a worker of the training's loader, mean over {cache_memory.WORKERS} workers, from
the warm-up to the last of {cache_memory.EPOCHS} epochs; pages shared with other processes count.

{cache_memory.table_of(rows)}

## Killed builds

Each build, in a folder of its own, gets SIGKILL at a random moment and is run again; its files are
compared with those of an undisturbed build.

{cache_kills.table_of(rows)}
"""


def _dense_section(rows: Sequence[Row]) -> str:
    table = cache_dense.table_of(rows)
    if not table:
        return ""
    return f"""### By crops or out of a dense map

The time of `build_cache` from crops over that with `--teacher dense`, on the same images and
proposals, beside the ratio of their multiplications (TMAC: 1e12 of an image). A dense map costs the
same whatever the number of proposals.

{table}

"""
