"""The data sets of a run, looked at before it starts: files, images, categories.

One way for yaml configs and LazyConfigs, for training and evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.augmentation import Resize
from ovd_d2.data.categories import missing_file_problem
from ovd_d2.data.image_faults import KINDS
from ovd_d2.data.image_memory import default_memory
from ovd_d2.data.images import image_problems
from ovd_d2.data.own import CONFIG_KEY, VARIABLE
from ovd_d2.data.passengers import DATA_SET
from ovd_d2.data.problems import Problem
from ovd_d2.data.registration import known_names, register_data_sets
from ovd_d2.data.validation import DatasetUse, Report, validate_dataset
from ovd_d2.evaluation.builder import EVALUATORS
from ovd_d2.vocabulary import Categories, Vocabulary

SHOWN = 3  # names in a message
MASK_FORMATS = ("polygon", "bitmask")  # that Detectron2's mapper reads


@dataclass(frozen=True)
class DataNeeds:
    """What a run will do with which data sets.

    Attributes:
        train: names of the training sets; empty for an evaluation.
        test: names of the test sets.
        masks: the model has masks.
        mask_format: "polygon" or "bitmask", as the mapper reads them.
        train_resize, test_resize: the strongest reduction that images meet, see
            :func:`ovd_d2.data.augmentation.smallest_resize`; None: not known.
        train_key, test_key: what the config calls the lists, for messages.
        masks_key, format_key: what it calls `masks` and `mask_format`.
        objects: False where only the images of the test sets are used.
        evaluator_types: what the test sets may be.
    """

    train: Sequence[str]
    test: Sequence[str]
    masks: bool
    mask_format: str = "polygon"
    train_resize: Resize | None = None
    test_resize: Resize | None = None
    train_key: str = "DATASETS.TRAIN"
    test_key: str = "DATASETS.TEST"
    masks_key: str = "MODEL.MASK_ON"
    format_key: str = "INPUT.MASK_FORMAT"
    objects: bool = True
    evaluator_types: Collection[str] = tuple(EVALUATORS)

    def use(self, *, training: bool) -> DatasetUse:
        """What the validator has to know of it."""
        keys = (self.masks_key, self.format_key)
        return DatasetUse(training, self.masks, self.mask_format, *keys, self.objects)


@dataclass
class CheckedData:
    """What was found.

    Attributes:
        problems: messages; each stops the run.
        notices: what is odd, but can be meant.
        train, test: a report of each data set whose file could be read.
    """

    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    train: dict[str, Report] = field(default_factory=dict)
    test: dict[str, Report] = field(default_factory=dict)

    def training_images(self, *, filter_empty: bool) -> list[dict[str, Any]]:
        """Entries of the images that will be trained on; `filter_empty` as of the loader."""
        return [
            {**entry, DATA_SET: name}
            for name, report in self.train.items()
            for entry in (report.annotated_images if filter_empty else report.images)
        ]


def check_data(needs: DataNeeds, *, decode: bool = True, progress: bool = True) -> CheckedData:
    """Every annotation file, then the header of every image: a wrong size explains wrong boxes.

    Args:
        needs: which files, and what for.
        decode: also read all data of every image, where no problem is found before: it takes
            minutes for 100,000 images that were never looked at.
        progress: show bars.
    """
    data = CheckedData()
    if needs.train and needs.masks and needs.mask_format not in MASK_FORMATS:
        expected = " or ".join(MASK_FORMATS)
        data.problems.append(f"{needs.format_key}: '{needs.mask_format}', expected {expected}")
    for training, names in ((True, needs.train), (False, needs.test)):
        key = needs.train_key if training else needs.test_key
        use = needs.use(training=training)
        evaluated = needs.objects and not training
        for name in names:
            if problem := _not_there(name) or (_not_evaluated(name, needs) if evaluated else None):
                data.problems.append(f"{key}: {problem}")
                continue
            report = validate_dataset(name, use, progress=progress)
            data.problems += [f"{key} '{name}': {problem}" for problem in report.problems]
            data.notices += [f"{key} '{name}': {notice}" for notice in report.notices]
            (data.train if training else data.test)[name] = report
    data.problems += list(_image_problems(needs, data, decode and not data.problems, progress))
    return data


def category_problems(
    vocabulary: Vocabulary | None, path: str, data: CheckedData, *, in_order: bool = False
) -> Iterable[str]:
    """Whether the vocabulary has the categories of every data set.

    They are found by their names, in training (:func:`ovd_d2.engine.build.in_classes_of`) as at
    test time (:func:`ovd_d2.engine.build.vocabulary_of`).

    Args:
        vocabulary: None for a detector with a fixed list of categories, that of its training set.
        path: of the vocabulary, for messages.
        data: the data sets.
        in_order: class k must be category k of a training set: its loader does not match names.
    """
    if vocabulary is None:
        yield from _fixed_list_problems(data)
        return
    ours = vocabulary.categories
    train, test = (
        {name: one.categories for name, one in reports.items() if one.categories is not None}
        for reports in (data.train, data.test)
    )
    for name, categories in train.items():
        if in_order:
            yield from _order_problems(ours, path, name, categories)
        else:
            yield from _name_problems(ours, path, name, categories, " ".join(train))
    if train and not in_order:
        yield from _spare_problems(ours, path, train)
    for name, categories in test.items():
        yield from _name_problems(ours, path, name, categories, name, evaluated=True)


def _not_there(name: str) -> str | None:
    register_data_sets([name])
    if name not in DatasetCatalog:
        known = ", ".join(known_names())
        return (
            f"'{name}' is not registered: describe it in a yaml file (datasets/README.md, \"Your "
            f'own") that {VARIABLE} or {CONFIG_KEY} names, or name one that is registered: {known}'
        )
    return missing_file_problem(name)


def _not_evaluated(name: str, needs: DataNeeds) -> str | None:
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type", None)
    if evaluator_type in needs.evaluator_types:
        return None
    known = ", ".join(sorted(needs.evaluator_types))
    return f"'{name}' has evaluator_type {evaluator_type!r}; evaluated are {known}"


def _image_problems(
    needs: DataNeeds, data: CheckedData, decode: bool, progress: bool
) -> Iterable[str]:
    for key, reports, resize in (
        (needs.train_key, data.train, needs.train_resize),
        (needs.test_key, data.test, needs.test_resize),
    ):
        for name, report in reports.items():
            found = image_problems(
                report.images,
                decode=decode,
                source=report.source,
                memory=default_memory(),
                progress=progress,
                resize=resize,
            )
            yield from (f"{key} '{name}': {_with_own_fix(name, one)}" for one in found)


def _with_own_fix(name: str, problem: Problem) -> Problem:
    """Missing images of a data set of the user's own: the entry that says where they are."""
    own_file = MetadataCatalog.get(name).get("own_file", None)
    if own_file is None or problem.fix != KINDS["missing"].set_fix:
        return problem
    fix = f"correct the image_root of '{name}' in {own_file}, or the names in {problem.file}"
    return replace(problem, fix=fix)


def _order_problems(
    ours: Categories, path: str, name: str, categories: Categories
) -> Iterable[str]:
    if ours.names != categories.names:
        yield (
            f"the names in {path} ({len(ours)}) are not the categories of '{name}' "
            f"({len(categories)}) in their order, first difference: "
            f"{_difference(ours.names, categories.names)}; "
            f"build it with tools/build_vocabulary.py --dataset {name}"
        )
    elif ours.novel != categories.novel:
        yield (
            f"{path} calls {sum(ours.novel)} names novel, '{name}' {sum(categories.novel)}: "
            f"build it again with --dataset {name}"
        )


def _name_problems(
    ours: Categories,
    path: str,
    name: str,
    categories: Categories,
    sets: str,
    *,
    evaluated: bool = False,
) -> Iterable[str]:
    """Names of a data set that are not there, or not as novel; `sets` is what to build it for."""
    novel = dict(zip(ours.names, ours.novel, strict=True))
    unknown = [one for one in categories.names if one not in novel]
    if unknown:
        shown = ", ".join(f"'{one}'" for one in unknown[:SHOWN])
        yield (
            f"{len(unknown)} of the {len(categories)} categories of '{name}' are not among the "
            f"{len(ours)} names in {path}, first {shown}: "
            + ("evaluate it with tools/evaluate_transfer.py, or " if evaluated else "")
            + f"build a vocabulary with tools/build_vocabulary.py --dataset {sets}"
        )
        return
    flags = zip(categories.names, categories.novel, strict=True)
    other = [one for one, flag in flags if flag != novel[one]]
    if other:
        yield (
            f"{path} and '{name}' do not agree on which categories are novel, first "
            f"'{other[0]}' ({len(other)} of {len(categories)}): build the vocabulary again with "
            f"--dataset {name}, or correct the data set's base categories"
        )


def _spare_problems(ours: Categories, path: str, train: Mapping[str, Categories]) -> Iterable[str]:
    """Names of no training set: likely the vocabulary of another."""
    known = {one for categories in train.values() for one in categories.names}
    spare = [one for one in ours.names if one not in known]
    if spare:
        sets = " ".join(train)
        yield (
            f"{len(spare)} of the {len(ours)} names in {path} are no categories of {sets}, first "
            f"'{spare[0]}': build it with tools/build_vocabulary.py --dataset {sets}"
        )


def _fixed_list_problems(data: CheckedData) -> Iterable[str]:
    """Class k is what it was in training; nothing can be matched by name afterwards."""
    reports = (data.train | data.test).items()
    known = [(name, one.categories) for name, one in reports if one.categories is not None]
    for name, categories in known[1:]:
        first_name, first = known[0]
        if categories.names != first.names:
            yield (
                f"the categories of '{name}' ({len(categories)}) are not those of '{first_name}' "
                f"({len(first)}) in their order, first difference: "
                f"{_difference(first.names, categories.names)}; a detector without a vocabulary "
                "has a fixed list of categories: number them alike in both files"
            )


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    for k, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"'{one}' and '{other}' at place {k}"
    return f"{len(ours)} and {len(theirs)} of them"
