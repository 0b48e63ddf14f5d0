"""Generation of the whole data set: parallel, resumable, the same bytes whatever the workers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ovd_d2.files import atomic_write, atomic_write_json, flush_folder
from ovd_d2.workers import available_cores, process_pool

from .annotations import LVISBuilder, describe_scene, lvis_categories
from .glyphs import PictogramCategory, build_categories
from .plan import (
    SplitPlan,
    choose_frequencies,
    frequency_of,
    plan_train,
    plan_val,
    without_base,
)
from .scenes import draw_crowd, draw_scene

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

GENERATOR_VERSION = 4  # raise it whenever the same arguments give other images or annotations
# Training is federated as LVIS's: a quarter of the categories are known to be absent. Validation is
# annotated exhaustively, so that every detection of an absent category counts as false.
NEGATIVE_SHARES = {"train": 0.25, "val": 1.0}
NAME, MINI_NAME = "pictograms_v1", "pictograms_v1_mini"
MINI_IMAGES, MINI_SIZE, MINI_CATEGORIES = (24, 12), 96, 80
SPLITS = ("train", "val")
# Suffix of the JSON file -> its images, and whether rare categories' objects go unannotated.
# "train_all" is for the supervised upper line, which no open-vocabulary detector may see.
ANNOTATION_FILES = {
    "train": ("train", True),
    "train_all": ("train", False),
    "val": ("val", False),
}
MIN_SIZE = 64
ARGUMENTS_FILE = "arguments.json"
_CHUNK = 20  # images a task; an interruption loses at most the chunks in hand
_SEED_SCENES = 100  # keeps the streams of scenes apart from those of the plan


class DifferentArgumentsError(ValueError):
    """The folder holds a data set that was made with other arguments."""


@dataclass(frozen=True)
class Arguments:
    """All that decides what the files hold; stored beside them and in them.

    `train_images` leaves out those that `plan.without_base` appends.
    """

    name: str
    train_images: int
    val_images: int
    size: int
    categories: int
    seed: int
    generator_version: int = GENERATOR_VERSION

    @property
    def images(self) -> dict[str, int]:
        return {"train": self.train_images, "val": self.val_images}


@dataclass(frozen=True)
class _Chunk:
    """Some consecutive images of one split: a task for a worker."""

    folder: Path
    arguments: Arguments
    split: str
    first: int
    contents: tuple[tuple[int, ...], ...]
    crowds: bool = False  # each content is one category, drawn as a crowd

    @property
    def record_file(self) -> Path:
        return self.folder / "records" / f"{self.split}-{self.first:08d}.json"


def prepare(
    root: str | os.PathLike[str],
    images: tuple[int, int] = (1000, 250),
    size: int = 160,
    categories: int = 80,
    seed: int = 0,
    workers: int | None = None,
    mini: bool = True,
    *,
    full: bool = True,
    overwrite: bool = False,
    replace_older: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Generate Pictograms below `root`, unless it is there already.

    Args:
        root: the folder of all data sets (DETECTRON2_DATASETS).
        images: number of training and of validation images. To those of training come images
            without base objects (:func:`ovd_d2.pictograms.dataset.plan.without_base`).
        size: side of the square images, px, at least MIN_SIZE.
        categories: how many; above len(GLYPHS) they become colour x glyph.
        seed: decides everything else. The output does not depend on `workers`.
        workers: processes; None takes one per core, 1 works in this process.
        mini: also make the mini pair for tests, of at most MINI_CATEGORIES categories.
        full: make the full pair.
        overwrite: replace what was made with other arguments.
        replace_older: replace what an older version of this generator made.
        progress: show progress bars.

    Returns:
        The folders of the data sets.

    Raises:
        DifferentArgumentsError: other arguments or another version made what is there, and it may
            not be replaced.
        ValueError: an argument is out of range, or so many categories do not fit.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size: expected at least {MIN_SIZE} px, got {size}")
    wanted = []
    if full:
        wanted.append(Arguments(NAME, *images, size, categories, seed))
    if mini:
        few = min(categories, MINI_CATEGORIES)  # more would not fit into so few images
        wanted.append(Arguments(MINI_NAME, *MINI_IMAGES, MINI_SIZE, few, seed))
    return [
        generate(
            Path(root),
            arguments,
            workers=workers,
            overwrite=overwrite,
            replace_older=replace_older,
            progress=progress,
        )
        for arguments in wanted
    ]


def generate(
    root: Path,
    arguments: Arguments,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    replace_older: bool = False,
    progress: bool = True,
) -> Path:
    """Generate one pair of splits into root/name; arguments and errors as in `prepare`.

    Work goes on in a hidden folder beside it, which keeps what is done when interrupted; the
    final folder appears whole, by a rename.
    """
    final = root / arguments.name
    partial = root / f".{arguments.name}.partial"
    categories = build_categories(arguments.categories)
    frequencies = choose_frequencies(categories, arguments.seed)
    train = plan_train(frequencies, arguments.train_images, arguments.seed)
    plans = {
        "train": without_base(train, frequencies, arguments.seed),
        "val": plan_val(arguments.categories, arguments.val_images, arguments.seed),
    }
    if is_usable(final, arguments, overwrite, replace_older):
        return final
    if not is_usable(partial, arguments, overwrite, replace_older):
        shutil.rmtree(partial, ignore_errors=True)
    (partial / "records").mkdir(parents=True, exist_ok=True)
    atomic_write_json(partial / ARGUMENTS_FILE, asdict(arguments))
    chunks = [chunk for split in SPLITS for chunk in _chunks(partial, arguments, split, plans)]
    _run(chunks, workers, progress, arguments.name)
    _write_annotations(partial, arguments, categories, frequencies, chunks)
    shutil.rmtree(partial / "records")
    publish(partial, final)
    return final


def publish(partial: Path, final: Path) -> None:
    """Gives a complete data set its name; what had it before is overwritten only now."""
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    flush_folder(final.parent)


def is_usable(
    folder: Path, arguments: DataclassInstance, overwrite: bool, replace_older: bool = False
) -> bool:
    """Whether `folder` is there and was made with these arguments; may it not be replaced, raise.

    Raises:
        DifferentArgumentsError: other arguments, and not `overwrite`; an older version made it, and
            not `replace_older` either.
    """
    if not folder.exists():
        return False
    differences = _differences(folder, arguments)
    older = list(differences) == ["generator_version"]
    if not differences:
        return True
    if overwrite or (older and replace_older):
        return False
    raise DifferentArgumentsError(
        f"{folder}: made {'by another version' if older else 'with other arguments'} "
        f"({', '.join(differences.values())}); use "
        f"{'--replace-older' if older else '--overwrite'} to replace it, or another --root"
    )


def _differences(folder: Path, arguments: DataclassInstance) -> dict[str, str]:
    """How the arguments stored in `folder` differ: name -> what was and is; {} if they do not."""
    path = folder / ARGUMENTS_FILE
    if not path.is_file():
        return {ARGUMENTS_FILE: f"{ARGUMENTS_FILE} is missing"}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {ARGUMENTS_FILE: f"{ARGUMENTS_FILE} is not JSON"}
    wanted = json.loads(json.dumps(asdict(arguments)))  # a tuple is a list there
    return {
        key: f"{key} was {stored.get(key)}, now {value}"
        for key, value in wanted.items()
        if stored.get(key) != value
    }


def check_version(json_file: str | os.PathLike[str]) -> None:
    """Refuses an annotation file of Pictograms that another version of this generator wrote.

    Raises:
        DifferentArgumentsError: names the file, both versions and what to do.
    """
    with open(json_file, encoding="utf-8") as stream:
        info = json.load(stream).get("info", {})
    found = info.get("arguments", {}).get("generator_version")
    if found != GENERATOR_VERSION:
        raise DifferentArgumentsError(
            f"{os.fspath(json_file)}: drawn by version {found} of Pictograms, this is version "
            f"{GENERATOR_VERSION}: run python datasets/prepare_pictograms.py --replace-older, then "
            "make proposals and caches of its training images again"
        )


def _chunks(
    folder: Path, arguments: Arguments, split: str, plans: dict[str, SplitPlan]
) -> Iterator[_Chunk]:
    contents = plans[split].images
    for first in range(0, len(contents), _CHUNK):
        yield _Chunk(folder, arguments, split, first, contents[first : first + _CHUNK])
    crowds = tuple((category,) for category in plans[split].crowds)
    for first in range(0, len(crowds), _CHUNK):
        part = crowds[first : first + _CHUNK]
        yield _Chunk(folder, arguments, split, len(contents) + first, part, crowds=True)


def _run(chunks: list[_Chunk], workers: int | None, progress: bool, label: str) -> None:
    """Draw the chunks that are not done yet."""
    total = sum(len(chunk.contents) for chunk in chunks)
    left = [chunk for chunk in chunks if not chunk.record_file.exists()]
    done = total - sum(len(chunk.contents) for chunk in left)
    workers = min(workers or available_cores(), len(left))
    bar = tqdm(total=total, initial=done, desc=label, unit="image", disable=not progress)
    with bar:
        if workers <= 1:
            for chunk in left:
                bar.update(_draw_chunk(chunk))
            return
        with process_pool(workers) as pool:
            futures: list[Future[int]] = [pool.submit(_draw_chunk, chunk) for chunk in left]
            for future in as_completed(futures):
                bar.update(future.result())


@lru_cache(maxsize=2)
def _categories(count: int) -> list[PictogramCategory]:
    return build_categories(count)


def _draw_chunk(chunk: _Chunk) -> int:
    """Draw and write the images of a chunk, then its record file; returns how many images."""
    arguments = chunk.arguments
    categories = _categories(arguments.categories)
    folder = chunk.folder / chunk.split
    folder.mkdir(exist_ok=True)
    records = []
    for index, contents in enumerate(chunk.contents, chunk.first):
        stream = [arguments.seed, _SEED_SCENES + SPLITS.index(chunk.split), index]
        rng = np.random.default_rng(np.random.SeedSequence(stream))
        if chunk.crowds:
            scene = draw_crowd(rng, contents[0], categories, arguments.size)
        else:
            scene = draw_scene(rng, contents, categories, arguments.size)
        write_image(folder / file_name(index), scene.image)
        share = NEGATIVE_SHARES[chunk.split]
        records.append(describe_scene(rng, scene, len(categories), share))
    write_compact(chunk.record_file, records)
    return len(records)


def write_image(path: Path, image: np.ndarray) -> None:
    """A PNG of (H, W, 3) uint8 RGB."""
    with atomic_write(path) as temporary:
        # Level 1: the grain does not compress, and a higher one takes most of the time.
        Image.fromarray(image).save(temporary, format="PNG", compress_level=1)


def write_compact(path: Path, content: Any) -> None:
    """JSON without blanks: indented, these long lists of numbers are slow to write and to read."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def file_name(index: int) -> str:
    """Of the image at a place of its split."""
    return f"{index + 1:06d}.png"


def _write_annotations(
    folder: Path,
    arguments: Arguments,
    categories: list[PictogramCategory],
    frequencies: list[str],
    chunks: list[_Chunk],
) -> None:
    """Merge the records into the JSON files, ANNOTATION_FILES."""
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for chunk in chunks:
        records[chunk.split] += json.loads(chunk.record_file.read_text(encoding="utf-8"))
    regular = records["train"][: arguments.train_images]
    _check_rule(lvis_categories(categories, frequencies, regular), arguments.train_images)
    table = lvis_categories(categories, frequencies, records["train"])
    for suffix, (split, hide_rare) in ANNOTATION_FILES.items():
        builder = LVISBuilder(
            arguments.name, split, table, hide_rare=hide_rare, side=arguments.size
        )
        for index, record in enumerate(records[split]):
            builder.add(_image_id(arguments, split, index), file_name(index), record)
        path = folder / f"{arguments.name}_{suffix}.json"
        write_compact(path, builder.build(asdict(arguments)))


def _image_id(arguments: Arguments, split: str, index: int) -> int:
    """Unique over both splits, so that caches of the two cannot be mixed up: training, validation,
    then the training images without base objects."""
    if split == "val":
        return 1 + arguments.train_images + index
    return 1 + index + (arguments.val_images if index >= arguments.train_images else 0)


def _check_rule(table: list[dict[str, Any]], num_images: int) -> None:
    """Assert LVIS's frequency rule on what was drawn."""
    for category in table:
        found = frequency_of(category["image_count"], num_images)
        if found != category["frequency"] or category["image_count"] < 1:
            raise AssertionError(
                f"{category['name']}: planned as {category['frequency']!r}, but in "
                f"{category['image_count']} of {num_images} images, which is {found!r}"
            )
