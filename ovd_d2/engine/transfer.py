"""One trained detector on data sets it was not trained for: only the vocabulary changes."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import nn

from ovd_d2.clip.loading import configured_teacher, teacher_problems
from ovd_d2.clip.vocabulary_builder import build_vocabulary, prompt_family
from ovd_d2.data.augmentation import smallest_resize
from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import build_test_loader
from ovd_d2.engine.checkpoint import WHOLE_MODEL, SafeCheckpointer
from ovd_d2.engine.data_checks import DataNeeds, check_data
from ovd_d2.engine.launching import on_main_process
from ovd_d2.engine.start import start
from ovd_d2.engine.trainer import without_nan
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.evaluation import build_evaluator, masks_in_boxes
from ovd_d2.files import atomic_write_json
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part, takes_vocabulary
from ovd_d2.systems import system_of
from ovd_d2.vocabulary import Categories, Vocabulary

logger = logging.getLogger(__name__)

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TASKS = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class TransferSet:
    """A data set that passed the checks."""

    name: str
    categories: Categories
    num_images: int


def evaluate_transfer(
    cfg: CfgNode, args: argparse.Namespace, dataset_names: Sequence[str]
) -> dict[str, Any]:
    """Evaluates `MODEL.WEIGHTS` on each data set with the data set's own names.

    Everything that can be missing is looked for before the first image. Log, config, detections
    and the report (`results.json`, after each data set) go to `OUTPUT_DIR/transfer`.

    Args:
        cfg: of the trained detector; `MODEL.OVD.TEACHER` embeds the names, unless the detector
            reads them (:class:`ovd_d2.systems.System`, `free_categories`).
        args: the command line, for the log.
        dataset_names: registered data sets.

    Returns:
        The report: `weights`, `teacher` and `prompts` (None where names are read) and `data_sets`:
        name -> `protocol`, `images`, `categories` and what the evaluator returned (`bbox`, `segm`;
        percent). Empty on all but the main process.

    Raises:
        SetupError: lists every problem of the config, the teacher and all data sets.
    """
    asked = open_evaluation(cfg, args, dataset_names, "transfer")
    report: dict[str, Any] = {
        "weights": cfg.MODEL.WEIGHTS,
        **asked.embedded_by,
        "data_sets": {},
    }
    for test_set in asked.test_sets:
        results = asked.evaluate(test_set)
        if comm.is_main_process():
            report["data_sets"][test_set.name] = results
            atomic_write_json(asked.folder / "results.json", report)
    return report if comm.is_main_process() else {}


@dataclass(frozen=True)
class NamedEvaluation:
    """A detector, and data sets by whose own names it is evaluated.

    Attributes:
        cfg: its `OUTPUT_DIR` is the evaluation's.
        model: has the weights of `MODEL.WEIGHTS`.
        test_sets: have passed the checks.
        vocabulary_of: what makes words of a data set's categories.
        embedded_by: teacher and prompts that do so, by name.
    """

    cfg: CfgNode
    model: nn.Module
    test_sets: Sequence[TransferSet]
    vocabulary_of: Callable[[Categories], Vocabulary]
    embedded_by: dict[str, str | None]

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    def evaluate(self, test_set: TransferSet) -> dict[str, Any]:
        """`protocol`, `images`, `categories` and the evaluator's numbers, in percent; empty on all
        but the main process."""
        part = open_vocabulary_part(self.model)
        assert part is not None  # the checks refuse others
        part.set_vocabulary(self.vocabulary_of(test_set.categories))
        evaluator = build_evaluator(self.cfg, test_set.name, str(self.folder / test_set.name))
        loader = build_test_loader(self.cfg, test_set.name)
        with masks_in_boxes(self.model, evaluator):
            results = inference_on_dataset(self.model, loader, evaluator)
        if not comm.is_main_process():
            return {}
        return {
            "protocol": evaluator.description["protocol"],
            "images": test_set.num_images,
            "categories": len(test_set.categories),
            **without_nan(dict(results)),
        }


def open_evaluation(
    cfg: CfgNode,
    args: argparse.Namespace,
    dataset_names: Sequence[str],
    folder: str,
    *,
    asked_by: str = "--datasets",
) -> NamedEvaluation:
    """Checks everything, starts the run in a folder below `OUTPUT_DIR`, loads the weights.

    Args:
        cfg: names the weights.
        args: of the command line.
        dataset_names: what may be evaluated.
        folder: name of the run's.
        asked_by: the option that names the data sets, for messages.

    Raises:
        SetupError: lists every problem of the config, the teacher and all data sets.
    """
    test_sets = on_main_process(partial(_checked, cfg, dataset_names, asked_by))
    vocabulary_of, embedded_by = _naming(cfg)
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, folder)  # the training's files stay
    start(cfg, args)
    model = _build_model(cfg)
    SafeCheckpointer(model, required=WHOLE_MODEL).load(cfg.MODEL.WEIGHTS)
    return NamedEvaluation(cfg, model, test_sets, vocabulary_of, embedded_by)


def transfer_table(report: dict[str, Any]) -> str:
    """A Markdown table: one row per data set and task, in percent, the protocol in each."""
    rows = []
    for name, entry in report["data_sets"].items():
        for task, word in TASKS.items():
            if task in entry:
                numbers = [_cell(entry[task].get(column)) for column in COLUMNS]
                counts = [entry["images"], entry["categories"]]
                rows.append([name, word, *counts, *numbers, entry["protocol"]])
    headers = ["data set", "task", "images", "names", *COLUMNS, "protocol"]
    numbers_right = ["left"] * 2 + ["right"] * (len(headers) - 3) + ["left"]
    return tabulate(
        rows, headers=headers, tablefmt="pipe", colalign=numbers_right, disable_numparse=True
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _build_model(cfg: CfgNode) -> nn.Module:
    """Without the training's vocabulary, which need not be at hand: each test set has its own."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OVD.VOCABULARY = ""
    return build_model(cfg)


def _reads_names(cfg: CfgNode) -> bool:
    system = system_of(cfg)
    return system is not None and system.free_categories


def _naming(cfg: CfgNode) -> tuple[Callable[[Categories], Vocabulary], dict[str, str | None]]:
    """What makes a vocabulary of a data set's categories; its teacher and prompts by name."""
    if _reads_names(cfg):
        return Vocabulary.of_names, {"teacher": None, "prompts": None}
    teacher = configured_teacher(cfg, device=cfg.MODEL.DEVICE)
    prompts = prompt_family(_training_vocabulary(cfg), cfg.MODEL.OVD.TEACHER.PROMPTS)
    options = {"prompts": prompts, "progress": comm.is_main_process()}
    embedded_by: dict[str, str | None] = {"teacher": teacher.fingerprint, "prompts": prompts}
    return partial(build_vocabulary, teacher=teacher, **options), embedded_by


def _checked(cfg: CfgNode, names: Sequence[str], asked_by: str) -> list[TransferSet]:
    """Raises SetupError with every problem of the config, the teacher and all data sets."""
    problems = list(_config_problems(cfg))
    needs = DataNeeds(
        train=(),
        test=names,
        masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
        test_resize=smallest_resize(cfg, is_train=False),
        test_key=asked_by,
    )
    data = check_data(needs, decode=not problems)
    problems += data.problems
    if not _reads_names(cfg):
        problems += _teacher_problems(cfg)
    if problems:
        raise SetupError(problems)
    return [
        TransferSet(name, get_categories(name), report.counts["images"])
        for name, report in data.test.items()
    ]


def _config_problems(cfg: CfgNode) -> Iterable[str]:
    if not takes_vocabulary(cfg):
        yield (
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with MODEL.ROI_HEADS.NAME "
            f"{cfg.MODEL.ROI_HEADS.NAME} has a fixed list of categories; transfer needs an "
            "open-vocabulary detector"
        )
    if cfg.MODEL.OVD.CLASSIFY_WITH != "detector":
        yield f"MODEL.OVD.CLASSIFY_WITH is {cfg.MODEL.OVD.CLASSIFY_WITH}: transfer needs 'detector'"
    yield from weights_problems(cfg.MODEL.WEIGHTS, needed=True)


def _training_vocabulary(cfg: CfgNode) -> Vocabulary | None:
    """`MODEL.OVD.VOCABULARY`, where it is at hand."""
    path = cfg.MODEL.OVD.VOCABULARY
    return Vocabulary.load(path) if path and PathManager.isfile(path) else None


def _teacher_problems(cfg: CfgNode) -> Iterable[str]:
    """Whether the teacher is that of the training vocabulary, as far as it is at hand."""
    path = cfg.MODEL.OVD.VOCABULARY
    try:
        teacher = configured_teacher(cfg, device=cfg.MODEL.DEVICE)
        vocabulary = _training_vocabulary(cfg)
    except SetupError as error:
        yield from error.problems
        return
    except (OSError, ValueError) as error:
        yield f"MODEL.OVD.VOCABULARY: {error}"
        return
    if vocabulary is None:
        logger.warning(
            "No vocabulary at '%s': it is not checked that MODEL.OVD.TEACHER is the teacher the "
            "model was trained with, nor that TEACHER.PROMPTS are its prompts.",
            path,
        )
    yield from teacher_problems(teacher, vocabulary, path)
