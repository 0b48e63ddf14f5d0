"""Which categories a data set has and which of them are novel (never trained on)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.utils.file_io import PathManager

from ovd_d2.data.findings import Findings
from ovd_d2.data.json_stream import AnnotationFileError, file_problem, read_parts
from ovd_d2.data.paths import datasets_root
from ovd_d2.data.problems import Problem
from ovd_d2.data.public_sets import dataset_field
from ovd_d2.data.registration import known_names, register_data_sets
from ovd_d2.vocabulary import Categories


def get_categories(dataset_name: str) -> Categories:
    """The categories of a registered data set, read from its annotation file.

    Novel are, in this order of precedence: the names that the metadata field `base_classes` does
    not list (OV-COCO needs no such field); the rare categories (`frequency: r`) of an LVIS-format
    file (LVIS's own open-vocabulary protocol); nothing otherwise. A data set without annotation
    file (PASCAL VOC) has the names of its metadata. The metadata field `spellings` maps the data
    set's spelling of a name to one that a text encoder knows ("pottedplant" to "potted plant").

    A panoptic data set has all categories of its panoptic file, things and stuff, in the order of
    their ids; one of semantic segmentation has the metadata's `stuff_classes`, and what ADE20K
    separates by commas are synonyms.

    Raises:
        KeyError: the data set is not registered.
        FileNotFoundError: its annotation file is missing.
        ValueError: the file is not in COCO's or LVIS's format, or its categories lack ids or names;
            `base_classes` holds a name the data set does not have; synonyms are no list.
        SetupError: `OVD_DATASETS` could not be registered.
    """
    register_data_sets([dataset_name])
    if dataset_name not in DatasetCatalog:
        raise KeyError(
            f"data set '{dataset_name}' is not registered; registered: {', '.join(known_names())}"
        )
    metadata = MetadataCatalog.get(dataset_name)
    if dataset_name.startswith("lvis_v1"):
        entries = LVIS_CATEGORIES  # ships with Detectron2; the official JSON takes 20 s to parse
    elif metadata.get("panoptic_json", None) is not None:
        entries = _read_categories(metadata.panoptic_json, dataset_name)
    elif (
        metadata.get("json_file", None) is None
        and metadata.get("evaluator_type", None) == "sem_seg"
    ):
        return _of_pixels(metadata, dataset_name)
    elif metadata.get("json_file", None) is None and metadata.get("thing_classes", None):
        entries = _of_metadata(metadata)
    else:
        entries = _read_categories(metadata.json_file, dataset_name)
    return categories_of(entries, dataset_name)


def joined_categories(dataset_names: Sequence[str]) -> Categories:
    """Those of several data sets: what has the same name in two is one category.

    Raises:
        ValueError: a name is novel in one data set and not in another.
        Others: as of :func:`get_categories`.
    """
    tables = {name: get_categories(name) for name in dataset_names}
    if len(tables) == 1:
        return tables[dataset_names[0]]
    novel: dict[str, bool] = {}
    synonyms: dict[str, list[str]] = {}
    for data_set, table in tables.items():
        groups = table.synonyms or [[one] for one in table.names]
        for name, flag, group in zip(table.names, table.novel, groups, strict=True):
            if novel.setdefault(name, flag) != flag:
                raise ValueError(
                    f"'{name}' is novel in some of {', '.join(tables)}, but not in all: correct "
                    f"the base categories of '{data_set}'"
                )
            synonyms.setdefault(name, group)
    return Categories(list(novel), list(novel.values()), synonyms=list(synonyms.values()))


def categories_of(entries: Sequence[Mapping[str, Any]], dataset_name: str) -> Categories:
    """Of entries that have been read already; :func:`category_problems` finds none.

    Args:
        entries: COCO's or LVIS's entries, in any order.
        dataset_name: a registered data set, whose metadata says what is novel and how it is spelt.

    Raises:
        ValueError: `base_classes` holds a name that is not there; synonyms are no list.
    """
    entries = sorted(entries, key=lambda entry: entry["id"])
    spellings = dataset_field(dataset_name, "spellings", {})
    called = [_names_of(entry, dataset_name) for entry in entries]
    names = [group[0] for group in called]
    letters = [entry.get("frequency") for entry in entries]
    frequencies = [str(letter) for letter in letters] if all(letters) else None
    base = dataset_field(dataset_name, "base_classes")
    novel = _novel_flags(dataset_name, names, frequencies, base)
    synonyms = [[spellings.get(name, name) for name in group] for group in called]
    return Categories(
        [group[0] for group in synonyms],
        novel,
        ids=[entry["id"] for entry in entries],
        frequencies=frequencies,
        synonyms=synonyms,
    )


def category_problems(file: str, categories: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Categories without a usable id or name, or with the id or name of another.

    Args:
        file: they are in, for the messages.
        categories: entries of COCO's or LVIS's format.
    """
    found = Findings(file)
    ids = [entry.get("id") for entry in categories]
    names = [entry.get("name") for entry in categories]
    number = "number the categories from 1 on, and category_id with them"
    _add_faults(found, categories, "id", ids, is_id, ID, fix=number)
    name = "give every category a name of its own"
    _add_faults(found, categories, "name", names, _is_name, "a name", fix=name)
    return found.problems


LARGEST_ID = 2**63 - 1
ID = "an integer from 0 to 2**63 - 1"


def is_id(value: Any) -> bool:
    """:data:`ID`, and no boolean."""
    return type(value) is int and 0 <= value <= LARGEST_ID


def _add_faults(
    found: Findings,
    categories: Sequence[Mapping[str, Any]],
    key: str,
    values: list[Any],
    is_sound: Callable[[Any], bool],
    expected: str,
    *,
    fix: str,
) -> None:
    absent = [k for k, entry in enumerate(categories) if key not in entry]
    wrong = [k for k, one in enumerate(values) if not is_sound(one)]
    counts = Counter(one for one in values if is_sound(one))
    for what, rows in (
        (f"categories have no '{key}'", absent),
        (f"categories have a '{key}' that is not {expected}", sorted(set(wrong) - set(absent))),
        (f"categories share their '{key}'", [k for k, v in enumerate(values) if _twice(v, counts)]),
    ):
        found.add(
            f"categories[].{key}",
            what,
            rows,
            len(categories),
            first=lambda row: describe_category(categories[row], row),
            expected=expected,
            found=lambda row: repr(categories[row].get(key, "no such key")),
            fix=fix,
        )


def describe_category(category: Mapping[str, Any], row: int) -> str:
    """ "category 3 (cat)", for messages; "category number 1" where it has no id."""
    own = category["id"] if "id" in category else f"number {row + 1}"
    return f"category {own}" + (f" ({category['name']})" if category.get("name") else "")


def _twice(value: Any, counts: Counter[Any]) -> bool:
    return isinstance(value, (int, str)) and counts[value] > 1


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# Beginning of a data set's name -> what writes its annotation file.
PREPARE_COMMANDS = {
    "pictograms_v1_tuning_": "python datasets/prepare_pictograms.py --tuning",
    "pictograms_": "python datasets/prepare_pictograms.py",
    "coco_zeroshot_": "python datasets/prepare_ov_coco.py",
    "coco_generalized_zeroshot_": "python datasets/prepare_ov_coco.py",
}


def missing_file_problem(dataset_name: str) -> str | None:
    """What to do where the annotation file of a registered data set is not there; else None."""
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("panoptic_json", None) or metadata.get("json_file", None)
    if path is None and metadata.get("dirname", None):  # PASCAL VOC: a list of images
        path = f"{metadata.dirname}/ImageSets/Main/{metadata.split}.txt"
    if path is None or PathManager.isfile(path):
        return None
    found = f"annotation file of data set '{dataset_name}' not found: "
    found += PathManager.get_local_path(path)
    own = metadata.get("own_file", None)
    if own is not None:
        return f"{found} (correct the json_file of '{dataset_name}' in {own})"
    commands = [c for start, c in PREPARE_COMMANDS.items() if dataset_name.startswith(start)]
    commands = [metadata.prepare_command] if metadata.get("prepare_command", None) else commands
    fix = f"make it with {commands[0]}" if commands else "get it as datasets/README.md says"
    return (
        f"{found} (set DETECTRON2_DATASETS, now '{datasets_root()}', to the folder that holds it, "
        f"or {fix})"
    )


def _of_metadata(metadata: Metadata) -> list[dict[str, Any]]:
    """Numbered as Detectron2's conversion to COCO's format does."""
    names = metadata.thing_classes
    ids = metadata.get("thing_dataset_id_to_contiguous_id", None) or range(len(names))
    return [{"id": one, "name": name} for one, name in zip(sorted(ids), names, strict=True)]


def _is_of_pixels(metadata: Metadata) -> bool:
    """Semantic segmentation as Detectron2 registers it."""
    by_pixel = metadata.get("evaluator_type", None) == "sem_seg"
    return by_pixel and metadata.get("json_file", None) is None


def _of_pixels(metadata: Metadata, dataset_name: str) -> Categories:
    """Of semantic segmentation, e.g. "road, route" and "window " in ADE20K."""
    called = [
        [word.strip() for word in name.split(",") if word.strip()]
        for name in metadata.stuff_classes
    ]
    names = [", ".join(group) for group in called]
    base = dataset_field(dataset_name, "base_classes")
    return Categories(names, _novel_flags(dataset_name, names, None, base), synonyms=called)


def _names_of(category: Mapping[str, Any], dataset_name: str) -> list[str]:
    """What a category is called. LVIS spells 'name' for machines; Detectron2 shows the first
    synonym."""
    synonyms: list[str] = category.get("synonyms") or [category["name"]]
    if not isinstance(synonyms, list):
        raise ValueError(
            f"data set '{dataset_name}', category '{category['name']}': 'synonyms' must be a list "
            f"of names, got {synonyms!r}"
        )
    return synonyms


def _read_categories(json_file: str, dataset_name: str) -> list[dict[str, Any]]:
    if problem := missing_file_problem(dataset_name):
        raise FileNotFoundError(problem)
    path = Path(PathManager.get_local_path(json_file))
    # Read in batches and forgotten: they can be a gigabyte.
    skipped = {part: lambda batch: None for part in ("images", "annotations")}
    categories = read_parts(path, skipped).get("categories")
    if not isinstance(categories, list) or not all(isinstance(one, dict) for one in categories):
        what, expected = "is not a COCO / LVIS annotation file", "a list 'categories' of objects"
        fix = "export the file again"
        raise AnnotationFileError(file_problem(path, what, expected, "none", fix))
    if problems := category_problems(str(path), categories):
        raise ValueError("; ".join(map(str, problems)))
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
