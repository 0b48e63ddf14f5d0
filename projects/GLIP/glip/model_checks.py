"""What the weights of a model must be; looked at before it is built."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ovd_d2.engine.weights import is_remote, read_checkpoint, weights_problems, without_query
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.model import bert_sizes
from ovd_d2.projects.glip.text import pretrained_bert
from ovd_d2.projects.glip.tuning import FULL

_TEXT_ENCODER = "text_encoder."  # part of the names of its parameters


def tuning_problems(cfg: CfgNode) -> Iterator[str]:
    """Nothing is loaded where no weights are named, and nothing would say so."""
    mode = cfg.MODEL.GLIP.TUNING
    if mode != FULL and not cfg.MODEL.WEIGHTS:
        yield (
            f"MODEL.WEIGHTS is empty, but MODEL.GLIP.TUNING {mode} keeps most of the model as it "
            "is given, which would be noise: name in MODEL.WEIGHTS those of a trained GLIP, or set "
            f"MODEL.GLIP.TUNING {FULL}"
        )


def text_encoder_problems(cfg: CfgNode, *, training: bool) -> list[str]:
    """Of `MODEL.GLIP.BERT.PRETRAINED`, where it is going to be read.

    Args:
        cfg: the complete config.
        training: it may begin with weights of a backbone alone.
    """
    bert, weights = cfg.MODEL.GLIP.BERT, cfg.MODEL.WEIGHTS
    if not bert.PRETRAINED or (weights and (not training or _bring_text_encoder(weights))):
        return []
    try:
        pretrained_bert(bert.PRETRAINED, bert_sizes(bert).config(0.0))
    except SetupError as error:
        return error.problems
    return []


def _bring_text_encoder(weights: str) -> bool:
    """Whether they do; True of what is not on this machine or at fault, which is said elsewhere."""
    if is_remote(weights) or weights_problems(weights):
        return True
    try:
        names = read_checkpoint(PathManager.get_local_path(without_query(weights)))["model"]
    except SetupError:
        return True
    return any(_TEXT_ENCODER in name for name in names)
