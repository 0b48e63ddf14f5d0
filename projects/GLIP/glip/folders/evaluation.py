"""A trained GLIP on many small sets: as it is, and fine-tuned on a few images of each."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import orjson
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ovd_d2.data.augmentation import smallest_resize
from ovd_d2.data.categories import get_categories
from ovd_d2.engine import build_open_vocabulary_model
from ovd_d2.engine.checkpoint_files import BEST
from ovd_d2.engine.data_checks import DataNeeds, check_data
from ovd_d2.engine.launching import on_main_process
from ovd_d2.engine.run import evaluate, train
from ovd_d2.engine.trainer import FINAL, OpenVocabularyTrainer, without_nan
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.evaluation.protocols import COCO
from ovd_d2.files import atomic_write_json, fingerprint_json, sha256_file
from ovd_d2.projects.glip.few_images import few_images
from ovd_d2.projects.glip.folders.few_shot import ALL, EPOCHS, tuned_config
from ovd_d2.projects.glip.folders.layout import TRAIN, FolderSet, read_table, register_split
from ovd_d2.projects.glip.folders.prompt_file import Row, rows_of
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.prompts.chunks import asked_chunks
from ovd_d2.projects.glip.prompts.detection import AllNames, phrases_of, with_phrases
from ovd_d2.projects.glip.tuning import FULL, PROMPT

logger = logging.getLogger(__name__)

ZERO = "0"  # shots
RESULT, BEGUN = "result.json", "run.json"  # of a run: its numbers, and before what they are of


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        shots: "0" (no training), a number of images per category, or "all".
        seeds: of the trainings; with "all" the first one alone.
        prompts: see :func:`ovd_d2.projects.glip.folders.prompt_file.read_prompts`.
        epochs: of a training, at most.
    """

    shots: Sequence[str] = (ZERO,)
    seeds: Sequence[int] = (3, 30, 300)
    prompts: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS

    def runs(self) -> list[tuple[str, int]]:
        """(shots, seed) of every run on a set; the seed of no training is 0."""
        found = []
        for shots in self.shots:
            seeds = {ZERO: [0], ALL: list(self.seeds[:1])}.get(shots, list(self.seeds))
            found += [(shots, seed) for seed in seeds]
        return found


@dataclass(frozen=True)
class Asked:
    """A set that passed the checks, and what its images are asked for.

    Attributes:
        folder_set: where it is.
        name: of its evaluated split, as registered.
        validated: of the split that chooses checkpoints.
        rows: what is asked for in place of names.
        captions: all of them, in the evaluation.
        images, categories: of the evaluated split.
    """

    folder_set: FolderSet
    name: str
    validated: str
    rows: list[Row]
    captions: list[str]
    images: int
    categories: int


def evaluate_folders(
    cfg: CfgNode, args: argparse.Namespace, sets: Sequence[FolderSet], plan: Plan
) -> dict[str, Any]:
    """Runs the plan on every set; what `OUTPUT_DIR` has of it already is not run again.

    Args:
        cfg: of a trained GLIP, `MODEL.WEIGHTS`; `MODEL.GLIP.TUNING` is how it is tuned.
        args: the command line, for the log.
        sets: where they are.
        plan: what is measured.

    Returns:
        `settings`, and `runs`: one entry per set, shots and seed, with its numbers in percent. The
        same on all processes.

    Raises:
        SetupError: lists every problem of config and sets; `OUTPUT_DIR` is of other settings.
    """
    asked = on_main_process(partial(_checked, cfg, sets, plan))
    for one in asked[: 0 if comm.is_main_process() else None]:
        _register(one.folder_set, Path(cfg.OUTPUT_DIR))
    settings = _settings(cfg, plan)
    model: list[GLIP] = []  # built once, where something is evaluated without a training

    def run(run_cfg: CfgNode, one: Asked, shots: str, seed: int) -> dict[str, Any]:
        if shots != ZERO:
            return _few_shot(run_cfg, args, one, plan, shots, seed)
        if not model:
            built = build_open_vocabulary_model(_untuned(run_cfg, plan))
            assert isinstance(built, GLIP)  # the checks refuse others
            model.append(built)
        return _zero_shot(run_cfg, one, model[0])

    runs = []
    for one, (shots, seed) in product(asked, plan.runs()):
        folder = Path(cfg.OUTPUT_DIR) / one.folder_set.name / f"shots{shots}_seed{seed}"
        entry = {"set": one.folder_set.name, "shots": shots, "seed": seed}
        wanted = {**entry, "settings": settings, "prompt": one.captions}
        numbers = on_main_process(partial(_done, folder / RESULT, wanted))
        if numbers is None:
            on_main_process(partial(_begin, folder / BEGUN, wanted))
            with _logs_of_one_run():
                numbers = comm.all_gather(run(_of_run(cfg, one, folder), one, shots, seed))[0]
            if comm.is_main_process():
                atomic_write_json(folder / RESULT, {**wanted, "numbers": numbers})
        runs.append({**entry, **_described(one), **numbers})
    return {"settings": settings, "protocol": COCO.name, "runs": runs}


def _untuned(cfg: CfgNode, plan: Plan) -> CfgNode:
    """Weights that are still to be tuned bring no offset to a caption's embeddings."""
    cfg = cfg.clone()
    cfg.defrost()
    if any(shots != ZERO for shots in plan.shots):
        cfg.MODEL.GLIP.TUNING = FULL
    return cfg


def _settings(cfg: CfgNode, plan: Plan) -> dict[str, Any]:
    """What numbers depend on, beside the set."""
    model = cfg.clone()
    model.defrost()
    model.OUTPUT_DIR = ""
    return {
        "weights": cfg.MODEL.WEIGHTS,
        "weights_sha256": sha256_file(cfg.MODEL.WEIGHTS),
        "tuning": cfg.MODEL.GLIP.TUNING,
        "names_per_caption": cfg.MODEL.GLIP.NAMES_PER_CAPTION,
        "epochs": plan.epochs,
        "config": fingerprint_json(model.dump()),
    }


def _described(one: Asked) -> dict[str, Any]:
    found = one.folder_set
    return {
        "split": found.evaluated,
        "chosen_by": found.validated,
        "file": found.splits[found.evaluated].json_file.as_posix(),
        "images": one.images,
        "names": one.categories,
        "captions": one.captions,
    }


def _done(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The numbers of a run that was made; None where it is to be made."""
    if not path.is_file():
        return None
    found = _read(path)
    if "numbers" not in found:
        raise SetupError([f"{path} has no numbers: delete it"])
    numbers: dict[str, Any] = found.pop("numbers")
    _check_same(path, found, wanted)
    return numbers


def _begin(path: Path, wanted: dict[str, Any]) -> None:
    """Says what a run is of before it has a result: what was stopped is not resumed as another."""
    if path.is_file():
        _check_same(path.parent, _read(path), wanted)
    atomic_write_json(path, wanted)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise SetupError([f"{path} cannot be read ({error!r}): delete it"]) from error
    return found


def _check_same(place: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found != wanted:
        key = next(one for one in wanted if found.get(one) != wanted[one])
        raise SetupError(
            [f"{place} is of another {key} than this run: name another OUTPUT_DIR, or delete it"]
        )


def _of_run(cfg: CfgNode, one: Asked, folder: Path) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.GLIP.PROMPTS.PHRASES = one.rows
    cfg.MODEL.OVD.VOCABULARY = ""
    cfg.DATASETS.TEST = (one.name,)
    cfg.TEST.OVD.FAILURES = 0
    return cfg


@contextmanager
def _logs_of_one_run() -> Iterator[None]:
    """Detectron2's set-up of a run adds handlers of its log, which the next run must not have."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "ovd_d2")]
    handlers = [list(one.handlers) for one in loggers]
    try:
        yield
    finally:
        for one, before in zip(loggers, handlers, strict=True):
            one.handlers[:] = before


def _zero_shot(cfg: CfgNode, one: Asked, model: GLIP) -> dict[str, Any]:
    for name in ("detectron2", "ovd_d2"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    model.set_phrases(phrases_of(one.rows))
    return _numbers(OpenVocabularyTrainer.test(cfg, model))


def _few_shot(
    cfg: CfgNode, args: argparse.Namespace, one: Asked, plan: Plan, shots: str, seed: int
) -> dict[str, Any]:
    """Trains, then evaluates the weights that were best on the validation split."""
    table = read_table(one.folder_set.splits[TRAIN].json_file)
    images = [image["id"] for image in table["images"]]
    if shots != ALL:
        images = few_images(table, int(shots), seed)
    folder = Path(cfg.OUTPUT_DIR)
    name = register_split(one.folder_set, TRAIN, folder / "data", images, tag=folder.name)
    training = tuned_config(
        cfg,
        shots=shots,
        seed=seed,
        images=len(images),
        train=name,
        validated=one.validated,
        all_names=_fit_one_prompt(cfg, name, one.rows),
        epochs=plan.epochs,
    )
    train(training, argparse.Namespace(**{**vars(args), "resume": True}))
    best = folder / BEST
    weights = best if best.is_file() else folder / f"{FINAL}.pth"
    final = training.clone()
    final.defrost()
    final.MODEL.WEIGHTS, final.DATASETS.TEST = str(weights), (one.name,)
    found = evaluate(final, argparse.Namespace(**{**vars(args), "resume": False}))
    return {**_numbers(found), "training_images": len(images), "checkpoint": weights.name}


def _fit_one_prompt(cfg: CfgNode, name: str, rows: Sequence[Row]) -> bool:
    names = with_phrases(get_categories(name).names, phrases_of(rows))
    try:
        AllNames(names, load_tokenizer(cfg.MODEL.GLIP.TOKENIZER))
    except ValueError as error:
        logger.info("'%s': %s", name, error)
        return False
    return True


def _numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of boxes; empty on all but the main process."""
    found: dict[str, Any] = without_nan(dict(results.get("bbox", {})))
    return {key: value for key, value in found.items() if key.startswith("AP") and "_" not in key}


def _register(one: FolderSet, output: Path) -> tuple[str, str]:
    """The names of the evaluated and of the validated split."""
    folder = output / one.name / "data"
    evaluated = register_split(one, one.evaluated, folder)
    if one.validated == one.evaluated:
        return evaluated, evaluated
    return evaluated, register_split(one, one.validated, folder)


def _checked(cfg: CfgNode, sets: Sequence[FolderSet], plan: Plan) -> list[Asked]:
    problems = list(weights_problems(cfg.MODEL.WEIGHTS, needed=True))
    if cfg.MODEL.META_ARCHITECTURE != "GLIP":
        problems.append(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, expected GLIP")
    if any(shots != ZERO for shots in plan.shots):
        problems += [
            f"'{one.name}' has no training split: ask for --shots 0, or leave it out by --sets"
            for one in sets
            if TRAIN not in one.splits
        ]
    if problems:
        raise SetupError(problems)
    found = []
    for one in sets:
        try:
            found.append(_asked(cfg, one, plan))
        except SetupError as error:
            problems += error.problems
    if problems:
        raise SetupError(problems)
    return found


def _asked(cfg: CfgNode, one: FolderSet, plan: Plan) -> Asked:
    name, validated = _register(one, Path(cfg.OUTPUT_DIR))
    needs = DataNeeds(
        train=(), test=(name,), masks=False, test_resize=smallest_resize(cfg, is_train=False)
    )
    data = check_data(needs)
    if data.problems:
        raise SetupError(data.problems)
    names = get_categories(name).names
    rows = rows_of(one, names, plan.prompts)
    tokenizer = load_tokenizer(cfg.MODEL.GLIP.TOKENIZER)
    wanted = with_phrases(names, phrases_of(rows))
    chunks = asked_chunks(one.name, wanted, tokenizer, cfg.MODEL.GLIP.NAMES_PER_CAPTION)
    captions = [chunk.prompt.caption for chunk in chunks]
    few = any(shots != ZERO for shots in plan.shots)
    if few and cfg.MODEL.GLIP.TUNING == PROMPT and len(captions) > 1:
        raise SetupError(
            [
                f"'{one.name}': prompt tuning learns an offset for each place of one caption, its "
                f"{len(names)} names fill {len(captions)}: leave it out by --sets, set "
                "MODEL.GLIP.NAMES_PER_CAPTION 0, or tune in another way (MODEL.GLIP.TUNING)"
            ]
        )
    images = data.test[name].counts["images"]
    return Asked(one, name, validated, rows, captions, images, len(names))
