"""Which categories a data set has and which of them are novel (never trained on)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.utils.file_io import PathManager

from ovd_d2.data.paths import datasets_root


@dataclass(frozen=True)
class CategoryTable:
    """The categories of one data set, in the order of Detectron2's contiguous class ids.

    Attributes:
        names: C category names, as the data set spells them.
        is_novel: C flags; a novel category has no training annotations.
        frequencies: C letters r / c / f (LVIS), or None where the format has none.
        synonyms: C lists of what each category is called, its name first; None: by its name alone.
    """

    names: list[str]
    is_novel: list[bool]
    frequencies: list[str] | None = None
    synonyms: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.names)


def get_categories(dataset_name: str) -> CategoryTable:
    """The category table of a registered data set, read from its annotation file.

    Novel are, in this order of precedence: the names that the metadata field `base_classes` does
    not list; the rare categories (`frequency: r`) of an LVIS-format file (LVIS's own
    open-vocabulary protocol); nothing otherwise. A data set without annotation file (PASCAL VOC)
    has the names of its metadata. The metadata field `spellings` maps the data set's spelling of a
    name to one that a text encoder knows ("pottedplant" to "potted plant").

    Raises:
        KeyError: the data set is not registered.
        FileNotFoundError: its annotation file is missing.
        ValueError: `base_classes` holds a name the data set does not have; synonyms are no list.
    """
    if dataset_name not in DatasetCatalog:
        raise KeyError(
            f"data set '{dataset_name}' is not registered; registered: "
            f"{', '.join(sorted(DatasetCatalog.list()))}"
        )
    metadata = MetadataCatalog.get(dataset_name)
    if dataset_name.startswith("lvis_v1"):
        categories = LVIS_CATEGORIES  # ships with Detectron2; the official JSON takes 20 s to parse
    elif metadata.get("json_file", None) is None and metadata.get("thing_classes", None):
        categories = [{"id": k, "name": name} for k, name in enumerate(metadata.thing_classes)]
    else:
        categories = _read_categories(metadata.json_file, dataset_name)
    categories = sorted(categories, key=lambda category: category["id"])
    spellings = metadata.get("spellings", {})
    called = [_names_of(category, dataset_name) for category in categories]
    names = [group[0] for group in called]
    letters = [category.get("frequency") for category in categories]
    frequencies = [str(letter) for letter in letters] if all(letters) else None
    novel = _novel_flags(dataset_name, names, frequencies, metadata.get("base_classes", None))
    synonyms = [[spellings.get(name, name) for name in group] for group in called]
    return CategoryTable([group[0] for group in synonyms], novel, frequencies, synonyms)


# Beginning of a data set's name -> what writes its annotation file.
PREPARE_COMMANDS = {
    "pictograms_": "python datasets/prepare_pictograms.py",
    "coco_zeroshot_": "python datasets/prepare_ov_coco.py",
    "coco_generalized_zeroshot_": "python datasets/prepare_ov_coco.py",
}


def missing_file_problem(dataset_name: str) -> str | None:
    """What to do where the annotation file of a registered data set is not there; else None."""
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file", None)
    if path is None and metadata.get("dirname", None):  # PASCAL VOC: a list of images
        path = f"{metadata.dirname}/ImageSets/Main/{metadata.split}.txt"
    if path is None or PathManager.isfile(path):
        return None
    commands = [c for start, c in PREPARE_COMMANDS.items() if dataset_name.startswith(start)]
    fix = f"make it with {commands[0]}" if commands else "get it as datasets/README.md says"
    return (
        f"annotation file of data set '{dataset_name}' not found: "
        f"{PathManager.get_local_path(path)} (set DETECTRON2_DATASETS, now "
        f"'{datasets_root()}', to the folder that holds it, or {fix})"
    )


def get_novel_flags(dataset_name: str) -> list[bool]:
    """Which categories are novel, in the order of contiguous class ids (:func:`get_categories`)."""
    return get_categories(dataset_name).is_novel


def _names_of(category: dict, dataset_name: str) -> list[str]:
    """What a category is called. LVIS spells 'name' for machines; Detectron2 shows the first
    synonym."""
    synonyms = category.get("synonyms") or [category["name"]]
    if not isinstance(synonyms, list):
        raise ValueError(
            f"data set '{dataset_name}', category '{category['name']}': 'synonyms' must be a list "
            f"of names, got {synonyms!r}"
        )
    return synonyms


def _read_categories(json_file: str, dataset_name: str) -> list[dict]:
    if problem := missing_file_problem(dataset_name):
        raise FileNotFoundError(problem)
    path = PathManager.get_local_path(json_file)
    try:
        with open(path) as stream:
            categories = json.load(stream)["categories"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a COCO / LVIS annotation file ({said})") from error
    return categories


def _novel_flags(
    dataset_name: str,
    names: list[str],
    frequencies: list[str] | None,
    base_classes: Sequence[str] | None,
) -> list[bool]:
    if base_classes is None:
        return [letter == "r" for letter in frequencies] if frequencies else [False] * len(names)
    base = set(base_classes)
    unknown = sorted(base - set(names))
    if unknown:
        raise ValueError(
            f"data set '{dataset_name}': its base names {unknown[:5]} are not among its "
            f"{len(names)} categories ({', '.join(names[:5])}, ...): spell them as its file does"
        )
    return [name not in base for name in names]
