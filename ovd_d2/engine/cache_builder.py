"""Builds the embedding cache: proposals of every image through the teacher, once, offline."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
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
    Written,
    dataset_info,
    entry_problems,
    id_problems,
    identity_problems,
)
from ovd_d2.clip.crops import CropRecipe
from ovd_d2.clip.pipeline import ImageTask, embed_images
from ovd_d2.clip.recipe import Recipe
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.images import ImageError, image_problems, load_image
from ovd_d2.ranks import Ranks


def build_cache(
    dataset_dicts: Sequence[Mapping[str, Any]],
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    path: str | os.PathLike[str],
    *,
    dataset_name: str,
    top_k: int | None = None,
    recipe: Recipe | None = None,
    batch_size: int | None = None,
    dtype: str = "float16",
    images_per_shard: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    part: tuple[int, int] = (1, 1),
) -> Written:
    """Embed the proposals of every image of a data set; killed and run again, it continues.

    Each proposal is embedded from the original pixels, by its crops (`ovd_d2.clip.crops`) or out of
    a dense map of the image (`ovd_d2.clip.dense`), and stored with the box and its objectness.

    All ranks of a process group (Detectron2's `launch`, torchrun) call this together and write to
    one folder; a rank takes every n-th of the shards that are still missing, so a build goes on
    with any number of ranks. How many there are decides what shares a batch of the teacher:
    on a CPU the embeddings are the same to the last bit all the same (tested with the shipped
    teacher); on a GPU they may differ by the rounding of its arithmetic, so that fingerprints may
    differ. Boxes and objectness never do.

    Args:
        dataset_dicts: Detectron2's list of dicts (file_name, image_id, height, width).
        proposals: boxes for at least these images.
        top_k: keep the K proposals of highest objectness; None keeps all.
        recipe: how boxes become embeddings; None: `CropRecipe.on` the teacher's device. The
            manifest holds it: with bfloat16, embeddings differ in the third digit.
        batch_size: crops (256) or, of a dense recipe, images (1) in one forward pass of the
            teacher.
        dtype: stored type of the embeddings: "float32", "float16" or "int8".
        images_per_shard: images in one file, which a killed process has to embed again; None: 64,
            or as in the folder.
        part: (i, n) with 1 <= i <= n embeds only part i of n, every n-th shard, for machines
            without a common file system; each part has a folder of its own, and merging the parts
            makes the cache. The parts have equal headers.

    Raises:
        CacheError: the teacher cannot do what the recipe says, proposals or images are missing, an
            image is damaged or of another size than its dict says, the disk has no room, the folder
            holds another cache, or another rank failed.
        ValueError: no such batch size; the teacher returned NaN or no unit vectors: the image id is
            named.
    """
    start, ranks = time.perf_counter(), Ranks()
    progress = progress and ranks.rank == 0
    recipe = recipe or CropRecipe.on(teacher.device)
    recipe.per_pass(batch_size)
    _check_inputs(dataset_dicts, proposals, dataset_name, top_k, part, recipe.problems(teacher))
    _check_images(dataset_dicts, dataset_name, ranks, progress)
    dataset = dataset_info(dataset_name, dataset_dicts)
    with RecordWriter(
        path,
        _manifest(dataset, proposals, teacher, {**recipe.describe(), "top_k": top_k}, dtype),
        images=dataset_dicts,
        images_per_shard=images_per_shard,
        overwrite=overwrite,
        part=part,
        ranks=ranks,
    ) as writer:
        writer.check_space(_rows_per_image(proposals, top_k))
        tasks = _tasks(dataset_dicts, writer.waiting_ids, proposals, top_k)
        written = embed_images(tasks, teacher, writer.add, recipe, batch_size=batch_size)
        title, count = f"embed {dataset_name}", len(writer.waiting_ids)
        for _ in tqdm(written, title, count, unit="image", disable=not progress):
            pass
        writer.finish()
    return writer.summary(start)


def load_pixels(entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The original pixels of an image entry, (H, W, 3) uint8 RGB.

    Raises:
        CacheError: see `ovd_d2.data.images.load_image`.
    """
    try:
        return load_image(entry)
    except ImageError as error:
        raise CacheError(str(error)) from error


def _manifest(
    dataset: DatasetInfo,
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    recipe: dict[str, Any],
    dtype: str,
) -> Manifest:
    return Manifest(
        kind="embeddings",
        dataset=dataset,
        proposals=proposals.fingerprint,
        recipe=recipe,
        teacher=teacher.fingerprint,
        embedding_dim=teacher.embedding_dim,
        dtype=dtype,
    )


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


def _check_inputs(
    dataset_dicts: Sequence[Mapping[str, Any]],
    proposals: ProposalStore,
    dataset_name: str,
    top_k: int | None,
    part: tuple[int, int],
    more: Sequence[str],
) -> None:
    """Find what would stop the build hours later, and report all of it at once."""
    problems = [*more, *entry_problems(dataset_dicts, top_k)]
    if not id_problems(dataset_dicts):
        problems += _proposal_problems(dataset_dicts, proposals, dataset_name)
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


def _tasks(
    entries: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    proposals: ProposalStore,
    top_k: int | None,
) -> Iterator[ImageTask]:
    """Of these images, one by one: proposals are read when the teacher can use them."""
    by_id = {entry["image_id"]: entry for entry in entries}
    for image_id in image_ids:
        yield _task(by_id[image_id], proposals, top_k)


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
