"""What a run begins with: its folder, its logs, its seed, and files that say how it was started."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from ovd_d2.files import atomic_write

logger = logging.getLogger(__name__)

LOGGERS = ("fvcore", "detectron2", "ovd_d2")
# In the output folder.
CONFIG, ENVIRONMENT, MODEL = "config.yaml", "environment.txt", "model.txt"


def start(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Freezes the config, opens the logs, seeds, and writes `config.yaml` and `environment.txt`.

    In place of Detectron2's `default_setup`, which prints those files into the log: six hundred
    lines before the first that is about the training.

    Args:
        cfg: complete; its `OUTPUT_DIR` is made.
        args: of Detectron2's `default_argument_parser`; `eval_only` leaves cuDNN's benchmark off.
    """
    cfg.freeze()
    _start(args, cfg.OUTPUT_DIR, cfg.SEED, cfg.CUDNN_BENCHMARK)
    _write(cfg.OUTPUT_DIR, CONFIG, cfg.dump())


def start_lazy(cfg: DictConfig, args: argparse.Namespace) -> None:
    """:func:`start` of a LazyConfig, which Detectron2 writes; its settings are those of `train`."""
    of_run = cfg.train
    seed, benchmark = of_run.get("seed", -1), of_run.get("cudnn_benchmark", False)
    _start(args, of_run.output_dir, seed, benchmark)
    if comm.is_main_process():
        LazyConfig.save(cfg, os.path.join(of_run.output_dir, CONFIG))


def describe_model(model: nn.Module, output_dir: str) -> None:
    """One line for the log; the modules, one per line, go to `model.txt` in the output folder."""
    counts = [(one.numel(), one.requires_grad) for one in model.parameters()]
    logger.info(
        "Model: %s, %.1f million parameters, %.1f million of them trained (%s)",
        type(model).__name__,
        sum(count for count, _ in counts) / 1e6,
        sum(count for count, trained in counts if trained) / 1e6,
        MODEL,
    )
    _write(output_dir, MODEL, f"{model}\n")


def _start(args: argparse.Namespace, output_dir: str, seed: int, cudnn_benchmark: bool) -> None:
    rank = comm.get_rank()
    os.makedirs(output_dir, exist_ok=True)
    for name in LOGGERS:
        setup_logger(output_dir, distributed_rank=rank, name=name)
    _log_start(output_dir)
    _write(output_dir, ENVIRONMENT, f"{collect_env_info()}\n")
    seed_all_rng(None if seed < 0 else seed + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cudnn_benchmark


def _log_start(output_dir: str) -> None:
    # Without an import, which would be one of every system; it is there, installed or not.
    packages = [
        (one.__name__, one.__version__) for one in (sys.modules["ovd_d2"], detectron2, torch)
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    logger.info("$ %s", shlex.join(["python", *sys.argv]))
    logger.info(
        "%s; processes: %d; %s",
        *(", ".join(map(" ".join, packages)), comm.get_world_size(), device),
    )
    logger.info("Folder: %s (%s: the whole config; %s)", output_dir, CONFIG, ENVIRONMENT)


def _write(output_dir: str, name: str, content: str) -> None:
    """By the main process, whole or not at all."""
    if comm.is_main_process():
        with atomic_write(Path(output_dir) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
