"""Imports proposals and embeddings that another project has stored into a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cache_import.layouts import BoxTolerance, Entry, ForeignBoxes, Layout
from ovd_d2.cache import CacheError, Manifest, RecordWriter, Written, dataset_info, entry_problems

BOX_FORMATS = ("xyxy", "xywh")
_MAX_LISTED = 8  # problems shown in full
_UNIT_TOLERANCE = 1e-3  # as `ovd_d2.cache.records` demands of a row


@dataclass
class Observations:
    """What a conversion has seen, for the user to judge.

    Attributes:
        rows, rows_normalised: embeddings converted by this run; those that were no unit rows.
        norms: smallest and largest norm that was stored.
        reach: the furthest right and lower box edge, in image widths and heights; 1 where the
            boxes are in pixels of the original images.
        without_scores: images whose layout stores no objectness; theirs is 1.
    """

    rows: int = 0
    rows_normalised: int = 0
    norms: tuple[float, float] = (float("inf"), 0.0)
    reach: tuple[float, float] = (0.0, 0.0)
    without_scores: int = 0


@dataclass(frozen=True)
class ConversionSummary:
    """What a finished conversion amounts to.

    Attributes:
        written: the cache.
        unused: images of the source that the data set does not have.
        seen: what was stored.
    """

    written: Written
    unused: int
    seen: Observations


def convert_cache(
    dataset_dicts: Sequence[Entry],
    layout: Layout,
    path: str | os.PathLike[str],
    *,
    dataset_name: str,
    teacher: str,
    embedding_dim: int,
    box_format: str = "xyxy",
    dtype: str = "float16",
    top_k: int | None = None,
    images_per_shard: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ConversionSummary:
    """Write a cache from what another project has stored; killed and run again, it continues.

    Every name, count and box is checked before anything is written. Rows are normalised, and sorted
    by objectness, best first.

    Args:
        dataset_dicts: Detectron2's list of dicts; every image must be in the source.
        layout: the source.
        teacher: fingerprint of the teacher that made the embeddings; nobody can check it here.
        embedding_dim: its width.
        box_format: "xyxy" or "xywh", in pixels of the original images.
        dtype: stored type of the embeddings.
        top_k: keep the K proposals of highest objectness; None keeps all.

    Raises:
        CacheError: the source lacks images, is damaged, tries to run code, or its boxes do not
            lie in the data set's images.
    """
    start = time.perf_counter()
    seen = Observations()
    _check(dataset_dicts, layout, dataset_name, box_format, top_k, seen, progress)
    manifest = Manifest(
        kind="embeddings",
        dataset=dataset_info(dataset_name, dataset_dicts),
        proposals=layout.identity(dataset_dicts),
        recipe={**layout.recipe, "top_k": top_k},
        teacher=teacher,
        embedding_dim=embedding_dim,
        dtype=dtype,
    )
    by_id = {entry["image_id"]: entry for entry in dataset_dicts}
    with RecordWriter(
        path,
        manifest,
        images=dataset_dicts,
        images_per_shard=images_per_shard,
        overwrite=overwrite,
    ) as writer:
        title = f"convert {dataset_name}"
        for image_id in tqdm(writer.waiting_ids, title, unit="image", disable=not progress):
            boxes, rows = layout.read(by_id[image_id])
            record = _record(by_id[image_id], boxes, rows, box_format, embedding_dim, seen)
            writer.add(image_id, _best(record, top_k))
        writer.finish()
    return ConversionSummary(writer.summary(start), layout.unused(dataset_dicts), seen)


def _check(
    entries: Sequence[Entry],
    layout: Layout,
    dataset_name: str,
    box_format: str,
    top_k: int | None,
    seen: Observations,
    progress: bool,
) -> None:
    """Names and counts, then every box; before anything is written."""
    if box_format not in BOX_FORMATS:
        raise ValueError(f"unknown box format '{box_format}'; choices: {', '.join(BOX_FORMATS)}")
    _refuse(entry_problems(entries, top_k), layout, dataset_name)
    _refuse([*_size_problems(entries), *layout.problems(entries)], layout, dataset_name)
    bar = tqdm(entries, f"check {layout.name}", unit="image", disable=not progress)
    _refuse(list(_box_problems(bar, layout, box_format, seen)), layout, dataset_name)


def _refuse(problems: Sequence[str], layout: Layout, dataset_name: str) -> None:
    if not problems:
        return
    listed = "\n".join(f"  {problem}" for problem in problems[:_MAX_LISTED])
    more = len(problems) - _MAX_LISTED
    rest = f"\n  ... and {more} more" if more > 0 else ""
    raise CacheError(
        f"cannot convert {layout.name} for data set '{dataset_name}', {len(problems)} problem(s); "
        f"nothing was written:\n{listed}{rest}"
    )


def _size_problems(dataset_dicts: Sequence[Entry]) -> list[str]:
    without = [one["image_id"] for one in dataset_dicts if not {"width", "height"} <= set(one)]
    return [f"the data set does not say the size of {len(without)} images"] if without else []


def _box_problems(
    entries: Iterator[Entry] | tqdm[Entry], layout: Layout, box_format: str, seen: Observations
) -> Iterator[str]:
    """One line per image that the boxes cannot be of."""
    for entry in entries:
        try:
            stored = layout.boxes(entry)
        except CacheError as error:
            yield str(error)
            continue
        problem = _box_problem(entry, stored, layout.tolerance, box_format)
        if problem:
            yield f"image {entry['image_id']} ({Path(entry['file_name']).name}): {problem}"
        elif len(stored.boxes):
            edges = _xyxy(stored.boxes, box_format)[:, 2:].max(axis=0)
            reach = edges / (entry["width"], entry["height"])
            seen.reach = (max(seen.reach[0], reach[0].item()), max(seen.reach[1], reach[1].item()))


def _box_problem(
    entry: Entry, stored: ForeignBoxes, tolerance: BoxTolerance, box_format: str
) -> str:
    boxes, scores = stored.boxes, stored.scores
    if not np.isfinite(boxes).all():
        return "a box is NaN or infinite"
    if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
        return "a score is not in [0, 1]"
    boxes = _xyxy(boxes, box_format)
    inverted = int((boxes[:, 2:] < boxes[:, :2]).any(axis=1).sum())
    if inverted:
        hint = "; are they x, y, width, height? Then --box-format xywh" * (box_format == "xyxy")
        return f"{inverted} of {len(boxes)} boxes have x2 < x1 or y2 < y1{hint}"
    outside = int(_outside(boxes, entry["width"], entry["height"], tolerance).sum())
    if outside:
        return (
            f"{outside} of {len(boxes)} boxes lie outside the {entry['width']} x {entry['height']} "
            f"image (width x height; largest x2, y2: {boxes[:, 2].max():.0f}, "
            f"{boxes[:, 3].max():.0f}). They must be in pixels of the original image, "
            f"{box_format}, and of this data set; boxes of resized images cannot be converted"
        )
    return ""


def _outside(
    boxes: NDArray[np.float32], width: int, height: int, tolerance: BoxTolerance
) -> NDArray[np.bool_]:
    size = np.array([width, height], np.float32)
    if tolerance.of_centre:
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        outside = (centre < -tolerance.pixels) | (centre > size + tolerance.pixels)
    else:
        outside = (boxes[:, :2] < -tolerance.pixels) | (boxes[:, 2:] > size + tolerance.pixels)
    return np.asarray(outside.any(axis=1))


def _xyxy(boxes: NDArray[np.float32], box_format: str) -> NDArray[np.float32]:
    if box_format == "xyxy":
        return boxes
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _record(
    entry: Entry,
    stored: ForeignBoxes,
    rows: torch.Tensor,
    box_format: str,
    embedding_dim: int,
    seen: Observations,
) -> dict[str, torch.Tensor]:
    """Boxes clipped to the image, objectness, unit rows."""
    count, width, height = len(stored.boxes), entry["width"], entry["height"]
    if count and tuple(rows.shape) != (count, embedding_dim):
        raise CacheError(
            f"image {entry['image_id']}: embeddings {tuple(rows.shape)}, expected "
            f"({count}, {embedding_dim}): the teacher's width is {embedding_dim}"
        )
    rows = _unit(rows.reshape(count, embedding_dim), entry, seen)
    limit = np.array([width, height, width, height], np.float32)
    boxes = np.clip(_xyxy(stored.boxes, box_format), 0, limit)
    scores = stored.scores
    if scores is None:
        seen.without_scores += 1
        scores = np.ones(count, np.float32)
    return {
        "boxes": torch.from_numpy(boxes),
        "objectness": torch.from_numpy(scores),
        "embeddings": rows,
    }


def _unit(rows: torch.Tensor, entry: Entry, seen: Observations) -> torch.Tensor:
    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    bad = ~torch.isfinite(norms) | (norms < 1e-6)
    if bad.any():
        raise CacheError(
            f"image {entry['image_id']} ({entry['file_name']}): {int(bad.sum())} of {len(rows)} "
            "embeddings are zero, NaN or infinite: the source is damaged there"
        )
    if len(rows):
        low, high = norms.min().item(), norms.max().item()
        seen.norms = (min(seen.norms[0], low), max(seen.norms[1], high))
    seen.rows += len(rows)
    seen.rows_normalised += int(((norms - 1).abs() > _UNIT_TOLERANCE).sum())
    return (rows.double() / norms.unsqueeze(1)).float()


def _best(record: dict[str, torch.Tensor], top_k: int | None) -> dict[str, torch.Tensor]:
    order = record["objectness"].argsort(descending=True, stable=True)[:top_k]
    return {name: value[order] for name, value in record.items()}


def describe(summary: ConversionSummary) -> list[tuple[str, str]]:
    """What `written_table` does not say of it, as (name, value) rows."""
    seen = summary.seen
    right, low = seen.reach
    rows = [("furthest box edge", f"{right:.2f} of the width, {low:.2f} of the height")]
    if seen.rows:
        least, most = seen.norms
        share = f"{seen.rows_normalised:,} of {seen.rows:,}"
        rows.append(("rows normalised", f"{share} (norms {least:.4g} to {most:.4g})"))
    if seen.without_scores:
        rows.append(("without objectness", f"{seen.without_scores:,} images: stored as 1"))
    if summary.unused:
        rows.append(("not in the data set", f"{summary.unused:,} images of the source"))
    return rows
