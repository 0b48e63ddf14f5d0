"""Is a store the one that a training needs? Answers in words, as lists of problems."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ovd_d2.cache.identity import (
    IMAGES_FILE,
    ImageIdentity,
    add_list_command,
    dataset_fingerprint,
    id_problems,
    load_image_list,
)
from ovd_d2.cache.manifest import DamagedFileError
from ovd_d2.cache.store import RecordStore


def check_compatible(
    cache: RecordStore,
    *,
    teacher_fingerprint: str,
    embedding_dim: int,
    images: Collection[Mapping[str, Any]],
) -> list[str]:
    """Return why a training cannot use `cache`, all reasons at once; an empty list means it can.

    Args:
        cache: the opened `EmbeddingCache`.
        teacher_fingerprint: of the teacher that embedded the vocabulary.
        embedding_dim: width of the vocabulary's embeddings.
        images: every image the training will ask for (file_name, image_id, height, width); all of
            the data set that the cache was built for, or some.
    """
    needed = {
        "teacher": (teacher_fingerprint, cache.manifest.teacher),
        "embedding width": (embedding_dim, cache.manifest.embedding_dim),
    }
    problems = [
        f"{what} of the cache {cache.path}: expected {expected!r} (the vocabulary's), found "
        f"{found!r}. Student and text must share one teacher: "
        f"{_rebuild_command(cache, teacher_fingerprint)}"
        for what, (expected, found) in needed.items()
        if expected != found
    ]
    fix = (
        "extract proposals for the training data set (tools/extract_proposals.py) and build its "
        f"cache: {_rebuild_command(cache, teacher_fingerprint, dataset='<training data set>')}"
    )
    return problems + coverage_problems(cache, images, fix)


def coverage_problems(
    store: RecordStore, images: Collection[Mapping[str, Any]], fix: str
) -> list[str]:
    """Why a training on these images cannot use a store: ids, other images, missing images.

    Args:
        images: as for `check_compatible`.
        fix: what to do, for the message.
    """
    if problems := id_problems(images):
        return problems
    problems = [f"{problem}. Otherwise {fix}" for problem in identity_problems(store, images)]
    wanted = {entry["image_id"] for entry in images}
    missing = sorted(image_id for image_id in wanted if image_id not in store)
    if missing:
        problems.append(
            f"images of the {store.kind} in {store.path}: expected the {len(wanted)} of the "
            f"training data set, {len(missing)} are missing (first ids: {missing[:5]}); they were "
            f"made for data set '{store.manifest.dataset.name}'. To train on these, {fix}"
        )
    return problems


def identity_problems(store: RecordStore, entries: Collection[Mapping[str, Any]]) -> list[str]:
    """Whether the records of a store are of other images than those that have their ids now.

    Args:
        entries: images that will be asked for; ids that the store lacks are not looked at.

    Returns: at most one line, without what to do about it.
    """
    dataset = store.manifest.dataset
    try:
        listed = load_image_list(store.path, dataset)
    except DamagedFileError as error:
        return [str(error)]
    asked = [entry for entry in entries if entry["image_id"] in store]
    if listed is None:
        same = dataset_fingerprint(asked) == dataset.fingerprint
        return [] if same else [_unlisted(store)]
    now = {entry["image_id"]: ImageIdentity.of(entry) for entry in asked}
    others = [one for one in now if one not in listed or not now[one].fits(listed[one])]
    if not others:
        return []
    first = others[0]
    return [
        f"the {store.kind} in {store.path} were made for other images under these ids: "
        f"{len(others)} of {len(entries)}, first: image {first} was {listed.get(first)}, is "
        f"{now[first]} (height x width). They are of data set '{dataset.name}' as it was then: use "
        "the annotation file of then"
    ]


def _unlisted(store: RecordStore) -> str:
    dataset = store.manifest.dataset
    return (
        f"the {store.kind} in {store.path} do not say of which images they are (no {IMAGES_FILE}), "
        f"and these are not the {dataset.num_images} of data set '{dataset.name}' that they were "
        f"made for. To use them for a part, run python {add_list_command(store.path, dataset)} once"
    )


def _rebuild_command(
    cache: RecordStore, teacher_fingerprint: str, dataset: str | None = None
) -> str:
    # A teacher's fingerprint is "<architecture>-<hash of the weights>".
    architecture = teacher_fingerprint.rpartition("-")[0] or "<architecture>"
    dense = "--teacher dense " if cache.manifest.recipe.get("teacher") == "dense" else ""
    return (
        f"python tools/cache.py build --dataset {dataset or cache.manifest.dataset.name} "
        f"--proposals <proposals> --architecture {architecture} --pretrained <weights> "
        f"{dense}--output {cache.path} --overwrite"
    )
