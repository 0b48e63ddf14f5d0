"""What tools/train_net.py runs in each process."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from yaml import YAMLError

from ovd_d2.data.own import register_configured
from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.build import classify_crops
from ovd_d2.engine.checkpoint import FIRST_STAGE, WHOLE_MODEL, SafeCheckpointer
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import default_config, unknown_key_problems
from ovd_d2.engine.launching import available_device, on_main_process
from ovd_d2.engine.scalars import write_scalars
from ovd_d2.engine.start import describe_model, start
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.errors import SetupError

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """A complete config from a yaml file and `KEY VALUE` pairs.

    It has the keys of Detectron2, of its PointRend project and of this package. Where this machine
    lacks `MODEL.DEVICE` it is set to what there is. The data sets of `DATASETS.OWN` are registered.

    Raises:
        SetupError: no such file, keys that do not exist (all are listed), values of a wrong type;
            `OVD_DATASETS` could not be registered.
    """
    register_data_sets()
    cfg = default_config()
    opts = [one for one in opts if one != "--"]  # argparse leaves it in, where options begin
    if not PathManager.isfile(config_file):
        raise SetupError([f"--config-file: no file at '{config_file}'"])
    try:
        if problems := unknown_key_problems(config_file, opts):
            raise SetupError(problems)
        cfg.merge_from_file(config_file, allow_unsafe=False)
        cfg.merge_from_list(opts)
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
        register_configured(cfg.DATASETS.OWN)
    except SetupError:
        raise
    # TypeError, AttributeError: not a mapping. RecursionError: brackets, or a base of itself.
    except (KeyError, ValueError, AssertionError, YAMLError, TypeError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise SetupError([f"{config_file} / options: {error}"]) from error
    return cfg


def training_set(cfg: CfgNode) -> str:
    """The data set of a config, for tools that work on one.

    Raises:
        SetupError: it has none, or several.
    """
    names = list(cfg.DATASETS.TRAIN)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise SetupError([f"DATASETS.TRAIN has {len(names)} data sets ({listed}): give --dataset"])
    return str(names[0])


def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Checks the set-up, then trains (`args.resume`: from the last checkpoint)."""
    check_and_set_up(cfg, args, training=True)
    trainer = OpenVocabularyTrainer(cfg, check=False)
    describe_model(trainer.checkpointer.model, cfg.OUTPUT_DIR)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates `MODEL.WEIGHTS` (`args.resume`: the last checkpoint) on `DATASETS.TEST`.

    Ends the process where a number is not as `TEST.EXPECTED_RESULTS` says.
    """
    check_and_set_up(cfg, args, training=False)
    model = OpenVocabularyTrainer.build_model(cfg)
    # The teacher on crops asks the first stage alone.
    crops_alone = cfg.MODEL.OVD.CLASSIFY_WITH == "clip_crops"
    checkpoint = SafeCheckpointer(
        model, cfg.OUTPUT_DIR, required=FIRST_STAGE if crops_alone else WHOLE_MODEL
    ).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    classify_crops(cfg, model)
    results = OpenVocabularyTrainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, **OpenVocabularyTrainer.test_with_tta(cfg, model)}
    if not comm.is_main_process():
        return {}
    write_scalars(results, cfg.OUTPUT_DIR, iteration=checkpoint.get("iteration", 0))
    verify_results(cfg, results)
    return dict(results)


def check_and_set_up(cfg: CfgNode, args: argparse.Namespace, *, training: bool) -> None:
    """Rank 0 looks at everything the run needs; then it starts, and what was odd is logged."""
    notices = on_main_process(partial(check_setup, cfg, training=training))
    start(cfg, args)
    for notice in notices:
        logger.warning("%s", notice)
