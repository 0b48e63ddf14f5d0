"""What tools/train_net.py runs in each process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ovd_d2.config import add_ovd_config
from ovd_d2.engine.build import apply_vocabulary, load_training_dicts
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.scalars import write_scalars
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.errors import SetupError
from ovd_d2.evaluation.clip_crops import with_crop_classifier


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """A complete config from a yaml file and `KEY VALUE` pairs.

    Raises:
        SetupError: no such file, or a key that does not exist.
    """
    cfg = get_cfg()
    add_ovd_config(cfg)
    if not PathManager.isfile(config_file):
        raise SetupError([f"--config-file: no file at '{config_file}'"])
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError) as error:
        raise SetupError([f"{config_file} / options: {error}"]) from error
    return cfg


def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Checks the set-up, then trains (`args.resume`: from the last checkpoint)."""
    try:
        training_dicts = load_training_dicts(cfg)
    except (KeyError, FileNotFoundError, AssertionError) as error:
        check_setup(cfg, [])  # lists this one among all others
        raise SetupError([str(error)]) from error
    check_setup(cfg, training_dicts)
    _start(cfg, args)
    trainer = OpenVocabularyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates `MODEL.WEIGHTS` (`args.resume`: the last checkpoint) on `DATASETS.TEST`."""
    check_setup(cfg)
    _start(cfg, args)
    model = OpenVocabularyTrainer.build_model(cfg)
    checkpoint = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=args.resume
    )
    apply_vocabulary(cfg, model)
    if cfg.MODEL.OVD.CLASSIFY_WITH == "clip_crops":
        model = with_crop_classifier(cfg, model)
    results = OpenVocabularyTrainer.test(cfg, model)
    if not comm.is_main_process():
        return {}
    write_scalars(results, cfg.OUTPUT_DIR, iteration=checkpoint.get("iteration", 0))
    return dict(results)


def _start(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's set-up, and the same handlers for what this package logs."""
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="ovd_d2")
