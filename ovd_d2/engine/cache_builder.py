"""Builds the embedding cache: proposals of every image through the teacher, once, offline."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ovd_d2.cache import (
    CachedProposals,
    CacheError,
    DatasetInfo,
    Manifest,
    ProposalStore,
    RecordWriter,
    dataset_fingerprint,
    id_problems,
    identity_problems,
)
from ovd_d2.clip.crops import crop_recipe
from ovd_d2.clip.pipeline import ImageTask, Settings, embed_images
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.images import ImageError, image_problems, load_image
from ovd_d2.ranks import Ranks


@dataclass(frozen=True)
class BuildSummary:
    """What a finished build amounts to.

    Attributes:
        images, proposals: records and rows in the cache.
        images_built: those embedded by this run; the others were there already.
        bytes: size of all shards.
        seconds: wall-clock time of this run.
        complete: the cache holds every image of the data set; a part does not.
    """

    path: Path
    images: int
    images_built: int
    proposals: int
    bytes: int
    seconds: float
    complete: bool


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
    amp: bool | None = None,
    dtype: str = "float16",
    images_per_shard: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    part: tuple[int, int] = (1, 1),
) -> BuildSummary:
    """Embed the proposals of every image of a data set; killed and run again, it continues.

    Each proposal's crops of the original pixels (`ovd_d2.clip.crops`) are embedded, averaged and
    normalised, and stored with the box and its objectness.

    All ranks of a process group (Detectron2's `launch`, torchrun) call this together and write to
    one folder; a rank takes every n-th of the shards that are still missing, so a build goes on
    with any number of ranks. How many there are decides which crops share a batch of the teacher:
    on a CPU the embeddings are the same to the last bit all the same (tested with the shipped
    teacher); on a GPU they may differ by the rounding of its arithmetic, so that fingerprints may
    differ. Boxes and objectness never do.

    Args:
        dataset_dicts: Detectron2's list of dicts (file_name, image_id, height, width).
        proposals: boxes for at least these images.
        top_k: keep the K proposals of highest objectness; None keeps all.
        batch_size: crops in one forward pass of the teacher.
        resize: how a crop becomes the teacher's input, see `ovd_d2.clip.crops.crop_batch`.
        amp: the teacher computes in bfloat16, on CUDA only; None: there yes, on the CPU no. The
            manifest says which, since embeddings differ in the third digit.
        dtype: stored type of the embeddings: "float32", "float16" or "int8".
        images_per_shard: images in one file, which a killed process has to embed again; None: 64,
            or as in the folder.
        part: (i, n) with 1 <= i <= n embeds only part i of n, every n-th shard, for machines
            without a common file system; each part has a folder of its own, and merging the parts
            makes the cache. The parts have equal headers.

    Raises:
        CacheError: proposals or images are missing, an image is damaged or of another size than
            its dict says, the disk has no room, the folder holds another cache, or another rank
            failed.
        ValueError: the teacher returned NaN or no unit vectors; the image id is named.
    """
    start = time.perf_counter()
    _check_inputs(dataset_dicts, proposals, dataset_name, top_k, part)
    settings = Settings(batch_size, resize=resize, amp=_use_amp(amp, teacher.device))
    recipe = {**crop_recipe(settings.scales, resize, amp=settings.amp), "top_k": top_k}
    manifest = _embedding_manifest(dataset_dicts, dataset_name, proposals, teacher, recipe, dtype)
    ranks = Ranks()
    progress = progress and ranks.rank == 0
    _check_images(dataset_dicts, dataset_name, ranks, progress)
    by_id = {entry["image_id"]: entry for entry in dataset_dicts}
    with RecordWriter(
        path,
        manifest,
        images=dataset_dicts,
        images_per_shard=images_per_shard,
        overwrite=overwrite,
        part=part,
        ranks=ranks,
    ) as writer:
        writer.check_space(_rows_per_image(proposals, top_k))
        tasks = (_task(by_id[image_id], proposals, top_k) for image_id in writer.waiting_ids)
        written = embed_images(tasks, teacher, writer.add, settings)
        for _ in tqdm(written, f"embed {dataset_name}", len(writer.waiting_ids), unit="image",
                      disable=not progress):  # fmt: skip
            pass
        finished = writer.finish()
    return BuildSummary(
        path=writer.path,
        images=finished.num_images,
        images_built=writer.missing,
        proposals=finished.num_rows,
        bytes=sum(shard.bytes for shard in finished.shards),
        seconds=time.perf_counter() - start,
        complete=finished.complete,
    )


def load_pixels(entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The original pixels of an image entry, (H, W, 3) uint8 RGB.

    Raises:
        CacheError: see `ovd_d2.data.images.load_image`.
    """
    try:
        return load_image(entry)
    except ImageError as error:
        raise CacheError(str(error)) from error


def _check_images(
    entries: Sequence[Mapping[str, Any]], dataset_name: str, ranks: Ranks, progress: bool
) -> None:
    """Before anything is written or deleted; rank 0 reads the headers, all ranks stop."""
    source = f"data set '{dataset_name}'"

    def problems() -> list[str]:
        if ranks.rank != 0:
            return []
        return list(
            map(str, image_problems(entries, decode=False, source=source, progress=progress))
        )

    if found := ranks.gather(problems)[0]:
        raise CacheError("\n".join(found))


def _rows_per_image(proposals: ProposalStore, top_k: int | None) -> float:
    mean = proposals.manifest.num_rows / proposals.manifest.num_images
    return mean if top_k is None else min(mean, top_k)


def _embedding_manifest(
    dataset_dicts: Sequence[Mapping[str, Any]],
    dataset_name: str,
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    recipe: dict[str, Any],
    dtype: str,
) -> Manifest:
    """What the cache is made of; a cache with another of these is another cache."""
    return Manifest(
        kind="embeddings",
        dataset=DatasetInfo(dataset_name, dataset_fingerprint(dataset_dicts), len(dataset_dicts)),
        proposals=proposals.fingerprint,
        recipe=recipe,
        teacher=teacher.fingerprint,
        embedding_dim=teacher.embedding_dim,
        dtype=dtype,
    )


def _check_inputs(
    dataset_dicts: Sequence[Mapping[str, Any]],
    proposals: ProposalStore,
    dataset_name: str,
    top_k: int | None,
    part: tuple[int, int],
) -> None:
    """Find what would stop the build hours later, and report all of it at once."""
    ids = [entry["image_id"] for entry in dataset_dicts]
    problems = id_problems(dataset_dicts)
    if not problems:
        problems += _proposal_problems(dataset_dicts, proposals, dataset_name)
    if len(set(ids)) < len(ids):
        problems.append(f"{len(ids) - len(set(ids))} image ids occur more than once")
    if not ids:
        problems.append("it has no images")
    if top_k is not None and top_k < 1:
        problems.append(f"top_k is {top_k}, expected at least 1 or None")
    if not 1 <= part[0] <= part[1]:
        problems.append(f"part is {part}, expected (i, n) with 1 <= i <= n")
    if problems:
        raise CacheError(f"cannot embed data set '{dataset_name}': {'; '.join(problems)}")


def _proposal_problems(
    dataset_dicts: Sequence[Mapping[str, Any]], proposals: ProposalStore, dataset_name: str
) -> list[str]:
    ids = [entry["image_id"] for entry in dataset_dicts]
    missing = sorted({image_id for image_id in ids if image_id not in proposals})
    again = f"run tools/extract_proposals.py for '{dataset_name}'"
    problems = [f"{one}; or {again}" for one in identity_problems(proposals, dataset_dicts)]
    if missing:
        problems.append(
            f"{proposals.path} (made for '{proposals.manifest.dataset.name}') has no proposals for "
            f"{len(missing)} of {len(ids)} images (first ids: {missing[:5]}); {again}"
        )
    return problems


def _use_amp(amp: bool | None, device: torch.device) -> bool:
    if amp and device.type != "cuda":
        raise ValueError(f"amp is for CUDA devices, the teacher runs on {device}; leave it out")
    return device.type == "cuda" if amp is None else amp


def _task(entry: Mapping[str, Any], proposals: ProposalStore, top_k: int | None) -> ImageTask:
    record = _fields(_top(proposals[entry["image_id"]], top_k))
    size = 3 * entry.get("height", 0) * entry.get("width", 0)
    return ImageTask(entry["image_id"], record, partial(load_pixels, entry), size)


def _top(proposals: CachedProposals, top_k: int | None) -> CachedProposals:
    """Best first, so that a training with fewer proposals takes the first of a record."""
    order = proposals.objectness.argsort(descending=True, stable=True)[:top_k]
    return CachedProposals(proposals.boxes[order], proposals.objectness[order])


def _fields(proposals: CachedProposals) -> dict[str, torch.Tensor]:
    return {"boxes": proposals.boxes, "objectness": proposals.objectness}
