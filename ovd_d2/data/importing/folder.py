"""A data set of another format as a folder: a JSON per split, the yaml file, the report."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from ovd_d2.data.annotation_files import write_annotations
from ovd_d2.data.image_memory import default_memory
from ovd_d2.data.images import look_at_images
from ovd_d2.data.importing.assembly import chosen_share, coco_of
from ovd_d2.data.importing.formats import READERS, format_of
from ovd_d2.data.importing.found import Account, Choices, FoundImage, FoundSet
from ovd_d2.data.importing.source import Source
from ovd_d2.data.validation import DatasetUse, validate_file
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_folder, read_text

YAML, REPORT = "my_data.yaml", "report.txt"
_SPLITS = ("train", "val", "test")
_SEED = 0  # of the images that are held out


@dataclass(frozen=True)
class Wish:
    """What is to be made of a data set.

    Attributes:
        name: the data sets are called name_train, name_val, name_test.
        base: names that are trained on; None: all.
        share: of the images, held out as val where the source has neither val nor test.
        background: images without annotation are taken, as images with nothing.
        choices: what the format leaves open.
    """

    name: str = "my"
    base: Sequence[str] | None = None
    share: float = 0.2
    background: bool = False
    choices: Choices = Choices()


@dataclass(frozen=True)
class Imported:
    """What came of it.

    Attributes:
        format: key of `READERS`.
        splits: split -> COCO data set.
        account: what was left out or changed.
    """

    format: str
    splits: dict[str, dict[str, Any]]
    account: Account


def import_dataset(source: Source, wish: Wish, format: str | None = None) -> Imported:
    """Reads a data set; nothing is written.

    Args:
        source: its files.
        wish: what is to be made of it.
        format: key of `READERS`; None: by looking at the folder.

    Raises:
        SetupError: no format or several fit; a file that all depends on cannot be read; no image
            or box is left; a base name is no category.
    """
    format = format or format_of(source)
    account = Account()
    found = READERS[format].read(source, wish.choices, account)
    splits = _splits(found, source, wish, account)
    if not any(splits.values()):
        raise SetupError([f"{source.given}: no annotated image is left", *_summary(account)])
    names = _category_names(found)
    files = sorted({str(one.file) for images in splits.values() for one in images})
    headers = look_at_images(files, decode=True, memory=default_memory())
    root = source.images_root
    made = {
        split: coco_of(images, names, headers, root, account)
        for split, images in splits.items()
        if images
    }
    _check_base(wish.base, names)
    _add_notes(made, names, account)
    if not any(dataset["annotations"] for dataset in made.values()):
        raise SetupError([f"{source.given}: no box is left", *_summary(account)])
    return Imported(format, made, account)


def write_imported(imported: Imported, source: Source, wish: Wish, output: Path) -> str:
    """Writes a folder whole or not at all: `train.json`, ..., `my_data.yaml`, `report.txt`.

    Returns:
        The report, without the list of all cases that the file has.

    Raises:
        FileExistsError: there is something at `output`.
        SetupError: what was made does not pass the checks that every training makes.
    """
    report = report_of(imported, wish)
    with atomic_folder(output) as folder:
        for split, dataset in imported.splits.items():
            write_annotations(folder / f"{split}.json", dataset, overwrite=False)
        problems = [str(one) for split in imported.splits for one in _faults(folder, split)]
        if problems:
            raise SetupError(problems)
        entries = yaml.safe_dump(_entries(imported, source, wish), **_YAML_STYLE)
        (folder / YAML).write_text(entries, encoding="utf-8")
        cases = "".join("\n" + "\t".join(one) for one in imported.account.cases)
        text = f"{report}\n\nevery case\n{cases}\n"
        (folder / REPORT).write_text(text, encoding="utf-8", errors="backslashreplace")
    return report


def read_base(text: str) -> list[str]:
    """Names of a file, one per line, or separated by commas.

    Raises:
        SetupError: none.
    """
    is_file = Path(text).is_file()
    words = read_text(text).splitlines() if is_file else text.split(",")
    names = [word.strip() for word in words if word.strip()]
    if not names:
        raise SetupError([f"--base {text}: expected a file with a name per line, or ant,bee"])
    return names


def report_of(imported: Imported, wish: Wish) -> str:
    """Tables of what was kept, of the categories, of what was left out, and notes."""
    parts = [f"format: {READERS[imported.format].title}", _kept_table(imported)]
    parts.append(_category_table(imported, wish))
    if rows := imported.account.rows():
        header = ["", "what", "number", "why", "first"]
        parts.append(tabulate(rows, header, maxcolwidths=[None, None, None, 50, 40]))
    else:
        parts.append("nothing was left out or changed")
    return "\n\n".join([*parts, *(f"note: {one}" for one in imported.account.notes)])


_YAML_STYLE: Any = {"sort_keys": False, "allow_unicode": True, "width": 1000}
_SHOWN_CATEGORIES = 40


def _splits(
    found: FoundSet, source: Source, wish: Wish, account: Account
) -> dict[str, list[FoundImage]]:
    splits = dict(found.splits)
    annotated = {one.file for images in splits.values() for one in images}
    for file in source.images:
        if file in annotated:
            continue
        if wish.background:
            image = FoundImage(file, (), source.short(file))
            splits.setdefault(source.split_of(file), []).append(image)
        else:
            why = "it has no annotation (--background takes it as one with nothing)"
            account.left_out("image", why, source.short(file))
    splits["train"] = splits.get("train", []) + splits.pop("", [])
    if not (splits.get("val") or splits.get("test")):
        shuffle = random.Random(_SEED).shuffle
        splits["train"], splits["val"] = chosen_share(splits["train"], wish.share, shuffle)
    return {split: splits[split] for split in _SPLITS if splits.get(split)}


def _category_names(found: FoundSet) -> list[str]:
    used = {o.name for images in found.splits.values() for image in images for o in image.objects}
    others = sorted(used - set(found.names) - {""})
    return [*dict.fromkeys(name for name in found.names if name), *others]


def _check_base(base: Sequence[str] | None, names: Sequence[str]) -> None:
    problems = []
    for one in base or ():
        if one not in names:
            close = difflib.get_close_matches(one, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names[:20])}"
            problems.append(f"--base: no category is called '{one}'; {hint}")
    if problems:
        raise SetupError(problems)


def _add_notes(made: dict[str, dict[str, Any]], names: Sequence[str], account: Account) -> None:
    used = {one["category_id"] for dataset in made.values() for one in dataset["annotations"]}
    if unused := [name for k, name in enumerate(names, 1) if k not in used]:
        account.notes.append(f"categories without a box: {', '.join(unused[:20])}")
    alike = Counter(name.casefold() for name in names)
    if twins := [name for name in names if alike[name.casefold()] > 1]:
        account.notes.append(f"categories that differ only in capitals: {', '.join(twins[:20])}")
    files = Counter(one["file_name"] for dataset in made.values() for one in dataset["images"])
    if shared := [name for name, count in files.items() if count > 1]:
        account.notes.append(f"{len(shared)} images are in several splits (first: {shared[0]})")
    masks = Counter("segmentation" in one for d in made.values() for one in d["annotations"])
    if masks[True] and masks[False]:
        account.notes.append(
            f"{masks[False]} of {masks.total()} objects have no mask: train with MODEL.MASK_ON "
            "False, as tools/train_own.py does"
        )


def _summary(account: Account) -> list[str]:
    return [
        f"{t}: {n} x {what}: {why} (first: {where})" for t, what, n, why, where in account.rows()
    ]


def _faults(folder: Path, split: str) -> list[Any]:
    use = DatasetUse(training=split == "train", masks=False, mask_format="bitmask")
    return list(validate_file(folder / f"{split}.json", use, progress=False).problems)


def _entries(imported: Imported, source: Source, wish: Wish) -> dict[str, Any]:
    return {
        f"{wish.name}_{split}": {
            "json_file": f"{split}.json",
            "image_root": str(source.images_root),
            **({} if wish.base is None else {"base": list(wish.base)}),
        }
        for split in imported.splits
    }


def _kept_table(imported: Imported) -> str:
    rows = []
    for split, dataset in imported.splits.items():
        annotations = dataset["annotations"]
        shown = len({one["image_id"] for one in annotations})
        masks = sum("segmentation" in one for one in annotations)
        rows.append([split, len(dataset["images"]), shown, len(annotations), masks])
    return tabulate(rows, ["kept", "images", "with objects", "boxes", "masks"])


def _category_table(imported: Imported, wish: Wish) -> str:
    counts = {
        split: Counter(one["category_id"] for one in dataset["annotations"])
        for split, dataset in imported.splits.items()
    }
    categories = next(iter(imported.splits.values()))["categories"]
    rows = [
        [
            one["name"],
            "base" if wish.base is None or one["name"] in wish.base else "novel",
            *(count[one["id"]] for count in counts.values()),
        ]
        for one in categories
    ]
    more = len(rows) - _SHOWN_CATEGORIES
    table = tabulate(rows[:_SHOWN_CATEGORIES], ["category", "", *(f"boxes, {s}" for s in counts)])
    return table + (f"\nand {more} more categories" if more > 0 else "")
