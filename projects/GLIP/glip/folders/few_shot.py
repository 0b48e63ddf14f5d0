"""Fine-tuning on a few images of a small set, by the paper's schedule."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from detectron2.config import CfgNode

from ovd_d2.projects.glip.checks import SWIN
from ovd_d2.projects.glip.tuning import FULL, LINEAR, PROMPT

ALL = "all"  # in place of a number of shots
BATCH = 4
EPOCHS = 200  # at most
_COPIES = {"1": 8, "3": 4, "5": 2, "10": 1}  # of a set per epoch, by shots
# Rate and weight decay of a way to tune.
_RATES = {FULL: (1e-4, 0.05), LINEAR: (1e-4, 0.05), PROMPT: (0.05, 0.25)}
_METRIC = "bbox/AP"
# "Freeze at 2" of the public code; other backbones than Swin are not its own.
_FROZEN = ("backbone.bottom_up.patch_embed.", "backbone.bottom_up.layers.0.")


def tuned_config(
    cfg: CfgNode,
    *,
    shots: str,
    seed: int,
    images: int,
    train: str,
    validated: str,
    all_names: bool,
    epochs: int = EPOCHS,
) -> CfgNode:
    """The config of a few-shot training (paper, section 4.3 and appendix).

    Args:
        cfg: of the pretrained model, with `MODEL.GLIP.TUNING`.
        shots: "1", "3", "5", "10", another number, or "all".
        seed: of the training.
        images: of the training set.
        train, validated: registered data sets; the best checkpoint is chosen by the latter.
        all_names: every name stands in every prompt, in fixed order, as in the paper; False for a
            set with more names than a prompt holds, which are sampled.
        epochs: at most so many.
    """
    cfg = cfg.clone()
    cfg.defrost()
    rate, decay = _RATES[cfg.MODEL.GLIP.TUNING]
    epoch = max(1, ceil(images * _COPIES.get(shots, 1) / BATCH))
    patience, stop = (2, 4) if shots == ALL else (3, 8)
    options: Sequence[Any] = (
        *("DATASETS.TRAIN", (train,), "DATASETS.TEST", (validated,), "SEED", seed),
        *("SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.IMS_PER_BATCH", BATCH),
        *("SOLVER.BASE_LR", rate, "SOLVER.WEIGHT_DECAY", decay, "SOLVER.WEIGHT_DECAY_NORM", decay),
        *("SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (), "SOLVER.MAX_ITER", epochs * epoch),
        *("SOLVER.CHECKPOINT_PERIOD", 10 * epoch, "SOLVER.EMA.ENABLED", False),
        *("SOLVER.AMP.ENABLED", cfg.MODEL.DEVICE.startswith("cuda")),
        *("SOLVER.PLATEAU.FACTOR", 0.1, "SOLVER.PLATEAU.FLOOR", 1e-6),
        *("SOLVER.PLATEAU.PATIENCE", patience, "SOLVER.PLATEAU.STOP", stop),
        *("TEST.EVAL_PERIOD", epoch, "TEST.OVD.BEST_CHECKPOINT", _METRIC),
        *("TEST.OVD.VALIDATION_LOSS", False, "TEST.OVD.FAILURES", 0),
        *("MODEL.GLIP.PROMPTS.NAMES", "all" if all_names else "sampled"),
        *("MODEL.GLIP.PROMPTS.SHUFFLE", not all_names, "MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS", ()),
        *("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
    )
    cfg.merge_from_list(list(options))
    if cfg.MODEL.BACKBONE.NAME == SWIN:
        cfg.MODEL.OVD.FREEZE = tuple(dict.fromkeys((*cfg.MODEL.OVD.FREEZE, *_FROZEN)))
    return cfg
