"""What is in a record store, and how far its build has come, without reading its records."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ovd_d2.cache import CacheError, Manifest, Written
from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.store import open_store
from ovd_d2.files import readable_bytes


@dataclass(frozen=True)
class StoreInfo:
    """What `tools/cache.py info` shows; every field is plain JSON.

    Attributes:
        images, proposals: in shards.
        dataset_images: how many the finished store has.
        proposals_per_image: smallest, median and largest number K; None without images.
        bytes: of all shards. bytes_per_image: the mean.
        complete: every image is there. problem: why it cannot be used, "" if it can.
        fingerprint: of a complete store, else "".
    """

    path: str
    kind: str
    dataset: str
    dataset_fingerprint: str
    teacher: str
    embedding_dim: int
    dtype: str
    proposals_from: str
    recipe: dict[str, Any]
    images: int
    dataset_images: int
    proposals: int
    proposals_per_image: tuple[int, float, int] | None
    bytes: int
    bytes_per_image: float
    shards: int
    schema_version: int
    complete: bool
    problem: str
    fingerprint: str

    def json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2)


def store_info(path: str | os.PathLike[str]) -> StoreInfo:
    """Look at a store of either kind, finished or not.

    Raises:
        CacheError: there is none, or its manifest is damaged.
    """
    folder = fetch_store(path)
    manifest = Manifest.load(folder)
    problem, per_image = "", None
    try:
        store = open_store(folder, allow_incomplete=True)
        manifest, rows = store.manifest, store.index.rows
        if len(rows):
            per_image = (int(rows.min()), float(np.median(rows)), int(rows.max()))
    except CacheError as error:
        problem = str(error)
    return StoreInfo(
        path=str(folder),
        kind=manifest.kind,
        dataset=manifest.dataset.name,
        dataset_fingerprint=manifest.dataset.fingerprint,
        teacher=manifest.teacher,
        embedding_dim=manifest.embedding_dim,
        dtype=manifest.dtype,
        proposals_from=manifest.proposals,
        recipe=manifest.recipe,
        images=manifest.num_images,
        dataset_images=manifest.dataset.num_images,
        proposals=manifest.num_rows,
        proposals_per_image=per_image,
        bytes=manifest.num_bytes,
        bytes_per_image=manifest.num_bytes / manifest.num_images if manifest.num_images else 0.0,
        shards=len(manifest.shards),
        schema_version=manifest.schema_version,
        complete=manifest.complete,
        problem=problem,
        fingerprint=manifest.fingerprint if manifest.complete else "",
    )


def written_table(written: Written, more: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """What a run has written and `more` that it says, as (name, value) rows for people."""
    manifest = written.manifest
    return [
        ("images", f"{manifest.num_images:,} ({written.images_written:,} in this run)"),
        ("proposals", f"{manifest.num_rows:,}"),
        ("bytes", f"{manifest.num_bytes:,} ({readable_bytes(manifest.num_bytes)})"),
        *more,
        ("seconds", f"{written.seconds:.1f}"),
        ("path", str(written.path)),
    ]


def info_table(info: StoreInfo) -> list[tuple[str, str]]:
    """The same as (name, value) rows for people."""
    rows = [
        ("path", info.path),
        ("holds", _what(info)),
        ("state", _state(info)),
        (
            "data set",
            f"{info.dataset} ({info.dataset_images:,} images, {info.dataset_fingerprint})",
        ),
    ]
    if info.kind == "embeddings":
        rows.append(("teacher", info.teacher))
        rows.append(("proposals", info.proposals_from))
    recipe = [f"{key}: {_plain(value)}" for key, value in info.recipe.items()]
    rows += zip(["recipe", *[""] * len(recipe)], recipe, strict=False)
    rows += [
        ("images", f"{info.images:,} in {info.shards:,} shards"),
        ("proposals stored", f"{info.proposals:,}"),
        ("proposals per image", _per_image(info.proposals_per_image)),
        ("bytes", f"{info.bytes:,} ({readable_bytes(info.bytes)})"),
        ("bytes per image", f"{info.bytes_per_image:,.0f}"),
        ("format", f"version {info.schema_version}"),
    ]
    if info.fingerprint:
        rows.append(("fingerprint", info.fingerprint))
    return rows


def _what(info: StoreInfo) -> str:
    if info.kind == "proposals":
        return "proposals (boxes and objectness)"
    return f"proposals with teacher embeddings, {info.embedding_dim} x {info.dtype} each"


def _state(info: StoreInfo) -> str:
    if info.problem:
        return f"damaged: {info.problem}"
    if info.complete:
        return "complete"
    share = info.images / info.dataset_images
    return f"unfinished: {info.images:,} of {info.dataset_images:,} images ({share:.1%})"


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _per_image(counts: tuple[int, float, int] | None) -> str:
    if counts is None:
        return "-"
    low, median, high = counts
    return f"{low:,} / {median:,g} / {high:,} (min / median / max)"
