"""Shows a few records of a store: in words, and as a sheet of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovd_d2.cache import CachedProposals, CacheError, RecordStore
from ovd_d2.crop_sheet import Crop, CropBox, crop_sheet
from ovd_d2.data.images import load_image
from ovd_d2.vocabulary import Vocabulary

LEGEND = "left: the image and the proposals beside it    right: each proposal, best first"
LEGEND_OF_NAMES = (
    f"{LEGEND}, with the nearest name and its cosine    orange ★: novel category    blue: base"
)
_OTHER_NAMES = 2  # shown after the nearest


@dataclass(frozen=True)
class SampledProposal:
    """One proposal of a sampled image.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the original image.
        objectness: in [0, 1].
        names: the nearest names with their cosine, nearest first; empty without a vocabulary.
        novel: the nearest name is a novel category.
    """

    box: tuple[float, float, float, float]
    objectness: float
    names: tuple[tuple[str, float], ...]
    novel: bool


@dataclass(frozen=True)
class SampledImage:
    """Attributes:
    image_id: of the record.
    total: proposals in the record; `proposals` are the first of them.
    """

    image_id: int
    total: int
    proposals: tuple[SampledProposal, ...]


def sample_ids(store: RecordStore, number: int, seed: int) -> list[int]:
    """`number` image ids at random (all, if there are fewer), ascending, equal for equal seeds."""
    ids = np.array(list(store))
    chosen = np.random.default_rng(seed).choice(ids, min(number, len(ids)), replace=False)
    return sorted(chosen.tolist())


def sample_records(
    store: RecordStore,
    image_ids: Sequence[int],
    *,
    proposals: int,
    vocabulary: Vocabulary | None = None,
) -> list[SampledImage]:
    """Read the first proposals of some images.

    Args:
        proposals: of each image; records are stored best first.
        vocabulary: names to compare the embeddings with.

    Raises:
        CacheError: an image is not in the store, or the vocabulary is another teacher's.
    """
    if vocabulary is not None:
        _check_vocabulary(store, vocabulary)
    missing = [image_id for image_id in image_ids if image_id not in store]
    if missing:
        raise CacheError(f"{store.path} has no record of the images {missing[:5]}")
    return [_sampled(image_id, store[image_id], proposals, vocabulary) for image_id in image_ids]


def sample_sheet(
    sampled: Sequence[SampledImage],
    entries: Mapping[int, Mapping[str, Any]],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Write a PNG: a line per image, the image with its proposals, then every proposal.

    Args:
        sampled: at least one.
        entries: Detectron2's dict of every sampled image.
        path: the PNG; it appears whole or not at all.
        title: one line.

    Raises:
        CacheError: an image has no entry, or the image itself is missing or damaged.
    """
    missing = [one.image_id for one in sampled if one.image_id not in entries]
    if missing:
        raise CacheError(
            f"the data set does not have the images {missing[:5]}; name the one that does"
        )
    columns = 1 + max(len(one.proposals) for one in sampled)
    named = any(proposal.names for one in sampled for proposal in one.proposals)
    crop_sheet(
        _cells(sampled, entries, columns),
        columns * len(sampled),
        path,
        title,
        legend=LEGEND_OF_NAMES if named else LEGEND,
        columns=columns,
        numbered=False,
    )


def sample_rows(sampled: Sequence[SampledImage]) -> list[list[str]]:
    """The same in words: image, proposal, objectness, box and the nearest names."""
    rows = []
    for image in sampled:
        for k, one in enumerate(image.proposals, 1):
            box = ", ".join(f"{value:.0f}" for value in one.box)
            names = ", ".join(_named(name) for name in one.names)
            place = f"{k} of {image.total}"
            rows.append([str(image.image_id), place, f"{one.objectness:.3f}", box, names])
        if not image.proposals:
            rows.append([str(image.image_id), "none", "", "", ""])
    return rows


def _check_vocabulary(store: RecordStore, vocabulary: Vocabulary) -> None:
    manifest = store.manifest
    if manifest.kind != "embeddings":
        raise CacheError(f"{store.path} holds proposals without embeddings: no names can be given")
    wanted = (manifest.teacher, manifest.embedding_dim)
    if (vocabulary.teacher, vocabulary.embedding_dim) != wanted:
        raise CacheError(
            f"the vocabulary is of teacher '{vocabulary.teacher}' (width "
            f"{vocabulary.embedding_dim}), {store.path} of '{wanted[0]}' (width {wanted[1]}): only "
            "embeddings of one teacher can be compared"
        )


def _sampled(
    image_id: int, record: CachedProposals, proposals: int, vocabulary: Vocabulary | None
) -> SampledImage:
    count = min(proposals, len(record))
    names: list[tuple[tuple[str, float], ...]] = [()] * count
    novel = [False] * count
    if vocabulary is not None and record.embeddings is not None:
        cosines = record.embeddings[:count] @ vocabulary.embeddings.T  # (k, C)
        best = cosines.topk(min(1 + _OTHER_NAMES, len(vocabulary)), dim=1)
        names = [
            tuple((vocabulary.names[k], value) for k, value in zip(row, values, strict=True))
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        novel = vocabulary.novel[best.indices[:, 0]].tolist()
    boxes: list[tuple[float, float, float, float]] = [
        (x1, y1, x2, y2) for x1, y1, x2, y2 in record.boxes[:count].tolist()
    ]
    rows = zip(boxes, record.objectness[:count].tolist(), names, novel, strict=True)
    return SampledImage(image_id, len(record), tuple(SampledProposal(*row) for row in rows))


def _cells(
    sampled: Sequence[SampledImage], entries: Mapping[int, Mapping[str, Any]], columns: int
) -> Iterator[Crop | None]:
    for image in sampled:
        entry = entries[image.image_id]
        picture = load_image(entry)
        boxes = [_crop_box(one) for one in image.proposals]
        lines = [
            f"{len(boxes)} of {image.total} proposals",
            os.path.basename(entry["file_name"]),
        ]
        yield Crop(picture, boxes, f"image {image.image_id}", False, lines, whole=True)
        for one, box in zip(image.proposals, boxes, strict=True):
            yield Crop(picture, [box], *_caption(one))
        yield from [None] * (columns - 1 - len(boxes))


def _crop_box(one: SampledProposal) -> CropBox:
    x1, y1, x2, y2 = one.box
    return CropBox((x1, y1, x2 - x1, y2 - y1), novel=one.novel, dashed=False)


def _caption(one: SampledProposal) -> tuple[str, bool, list[str]]:
    x1, y1, x2, y2 = one.box
    facts = f"objectness {one.objectness:.2f}, {x2 - x1:.0f} x {y2 - y1:.0f} px"
    if not one.names:
        return f"objectness {one.objectness:.2f}", False, [f"{x2 - x1:.0f} x {y2 - y1:.0f} px"]
    then = ", ".join(_named(name) for name in one.names[1:])
    return _named(one.names[0]), one.novel, [f"then {then}" if then else "", facts]


def _named(name: tuple[str, float]) -> str:
    return f"{name[0]} {name[1]:.2f}"
