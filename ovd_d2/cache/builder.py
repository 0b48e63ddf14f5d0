"""Builds the embedding cache: proposals of every image through the teacher, once, offline."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from tqdm import tqdm

from ovd_d2.cache.manifest import CacheError, DatasetInfo, Manifest, dataset_fingerprint
from ovd_d2.cache.store import CachedProposals, ProposalStore
from ovd_d2.cache.writer import IMAGES_PER_SHARD, RecordWriter
from ovd_d2.clip.crops import crop_recipe, embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher


@dataclass(frozen=True)
class BuildSummary:
    """What a finished build amounts to.

    Attributes:
        images, proposals: records and rows in the cache.
        images_built: those embedded by this run; the others were there already.
        bytes: size of all shards.
        seconds: wall-clock time of this run.
    """

    path: Path
    images: int
    images_built: int
    proposals: int
    bytes: int
    seconds: float


def build_cache(
    dataset_dicts: Sequence[Mapping[str, Any]],
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    path: str | os.PathLike[str],
    *,
    dataset_name: str,
    top_k: int | None = None,
    batch_size: int = 256,
    resize: str = "open_clip",
    images_per_shard: int = IMAGES_PER_SHARD,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildSummary:
    """Embed the proposals of every image of a data set; killed and run again, it continues.

    Each proposal's crops of the original pixels (`ovd_d2.clip.crops`) are embedded, averaged and
    normalised, and stored with the box and its objectness.

    Args:
        dataset_dicts: Detectron2's list of dicts (file_name, image_id, height, width).
        proposals: boxes for at least these images.
        top_k: keep the K proposals of highest objectness; None keeps all.
        batch_size: crops in one forward pass of the teacher.
        resize: how a crop becomes the teacher's input, see `ovd_d2.clip.crops.crop_batch`.

    Raises:
        CacheError: proposals or images are missing, an image is damaged or of another size than
            its dict says, or the folder holds another cache.
        ValueError: the teacher returned NaN or no unit vectors; the image id is named.
    """
    start = time.perf_counter()
    _check_inputs(dataset_dicts, proposals, dataset_name, top_k)
    recipe = {**crop_recipe(resize=resize), "top_k": top_k}
    manifest = _embedding_manifest(dataset_dicts, dataset_name, proposals, teacher, recipe)
    with RecordWriter(path, manifest, images_per_shard, overwrite) as writer:
        waiting = [entry for entry in dataset_dicts if entry["image_id"] not in writer.done_ids]
        done = len(dataset_dicts) - len(waiting)
        bar = tqdm(waiting, f"embed {dataset_name}", len(dataset_dicts), unit="image",
                   initial=done, disable=not progress)  # fmt: skip
        for entry in bar:
            kept = _top(proposals[entry["image_id"]], top_k)
            embeddings = embed_proposals(
                load_image(entry), kept.boxes, teacher, batch_size=batch_size, resize=resize
            )
            writer.add(entry["image_id"], {**_fields(kept), "embeddings": embeddings})
        finished = writer.finish()
        size = sum(shard.bytes for shard in finished.shards)
    seconds = time.perf_counter() - start
    images, rows = finished.num_images, finished.num_rows
    return BuildSummary(writer.path, images, len(waiting), rows, size, seconds)


def _embedding_manifest(
    dataset_dicts: Sequence[Mapping[str, Any]],
    dataset_name: str,
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    recipe: dict[str, Any],
) -> Manifest:
    """What the cache is made of; a cache with another of these is another cache."""
    return Manifest(
        kind="embeddings",
        dataset=DatasetInfo(dataset_name, dataset_fingerprint(dataset_dicts), len(dataset_dicts)),
        proposals=proposals.fingerprint,
        recipe=recipe,
        teacher=teacher.fingerprint,
        embedding_dim=teacher.embedding_dim,
    )


def _check_inputs(
    dataset_dicts: Sequence[Mapping[str, Any]],
    proposals: ProposalStore,
    dataset_name: str,
    top_k: int | None,
) -> None:
    """Find what would stop the build hours later, and report all of it at once."""
    problems = []
    ids = [entry["image_id"] for entry in dataset_dicts]
    wrong = [image_id for image_id in ids if not isinstance(image_id, (int, np.integer))]
    if wrong:
        problems.append(f"image ids must be integers, found {wrong[0]!r}")
    if len(set(ids)) < len(ids):
        problems.append(f"{len(ids) - len(set(ids))} image ids occur more than once")
    missing = sorted({image_id for image_id in ids if image_id not in proposals}, key=str)
    if missing and not wrong:
        problems.append(
            f"{proposals.path} (made for '{proposals.manifest.dataset.name}') has no proposals for "
            f"{len(missing)} of {len(ids)} images (first ids: {sorted(missing)[:5]}); run "
            f"tools/extract_proposals.py for '{dataset_name}'"
        )
    if not ids:
        problems.append("it has no images")
    if top_k is not None and top_k < 1:
        problems.append(f"top_k is {top_k}, expected at least 1 or None")
    if problems:
        raise CacheError(f"cannot embed data set '{dataset_name}': {'; '.join(problems)}")


def _top(proposals: CachedProposals, top_k: int | None) -> CachedProposals:
    if top_k is None or len(proposals) <= top_k:
        return proposals
    order = proposals.objectness.argsort(descending=True, stable=True)[:top_k]
    return CachedProposals(proposals.boxes[order], proposals.objectness[order])


def _fields(proposals: CachedProposals) -> dict[str, torch.Tensor]:
    return {"boxes": proposals.boxes, "objectness": proposals.objectness}


def load_image(entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The original pixels of a data set dict, (H, W, 3) uint8 RGB.

    Raises:
        CacheError: the file is missing, damaged or not of the size that the dict says; the file
            and the image id are named.
    """
    file_name, image_id = entry["file_name"], entry["image_id"]
    try:
        image: NDArray[np.uint8] = read_image(file_name, "RGB")
    except FileNotFoundError:
        raise CacheError(
            f"image {image_id}: {file_name} is missing (is DETECTRON2_DATASETS set to the folder "
            "that holds the data set?)"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        # Pillow reports damage as any of these, by file format.
        raise CacheError(
            f"image {image_id}: {file_name} cannot be read ({error}); fetch the file again"
        ) from error
    height, width = image.shape[:2]
    expected = (entry.get("height", height), entry.get("width", width))
    if (height, width) != expected:
        raise CacheError(
            f"image {image_id}: {file_name} is {height} x {width} (height x width), the data set "
            f"says {expected[0]} x {expected[1]}; its boxes would not fit. Restore the original "
            "file"
        )
    return image
