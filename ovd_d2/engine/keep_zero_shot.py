"""Tuned weights that keep what the model could before, and both numbers beside each other.

Fine-tuning on a few categories costs a detector those that it knew by words alone. Weights between
those before and after lose little of either (WiSE-FT, arXiv 2109.01903). Which share of the tuned
ones is taken is measured, on a data set of the new names and on one of the old.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn

from ovd_d2.engine.checkpoint import WHOLE_MODEL, SafeCheckpointer, save_weights
from ovd_d2.engine.transfer import NamedEvaluation, open_evaluation
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write_json
from ovd_d2.modeling.averaging import average_weights
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part

FOLDER = "kept"  # below OUTPUT_DIR
WEIGHTS, RESULTS = "model_kept.pth", "results.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
TASK = "bbox"


@dataclass(frozen=True)
class Mixture:
    """What weights between before and after are worth.

    Attributes:
        share: of the tuned weights, from 0 (before) to 1 (after).
        new: AP on the new names, percent.
        old: AP on the old novel names, percent.
    """

    share: float
    new: float
    old: float


def keep_zero_shot(
    cfg: CfgNode,
    args: argparse.Namespace,
    *,
    after: str,
    new_set: str,
    old_set: str,
    shares: Sequence[float] = SHARES,
    keep: float = 0.95,
    metric: str = "AP",
) -> list[Mixture]:
    """Evaluates each share on both sets and writes the weights of the best to `OUTPUT_DIR/kept`.

    Beside them `results.json` has all shares.

    Args:
        cfg: of the training, which began with `MODEL.WEIGHTS`.
        args: the command line, for the log.
        after: the tuned weights.
        new_set: data set of the new names.
        old_set: data set with novel names that the model knew before.
        shares: of the tuned weights; before and after are evaluated in any case.
        keep: least share of the old AP that must be left.
        metric: of the evaluator, of boxes; of the old set its "..._novel".

    Returns:
        All mixtures by their share; empty on all but the main process.

    Raises:
        SetupError: a set or a file cannot be used; the weights are of different models.
    """
    before = cfg.MODEL.WEIGHTS
    problems = list(weights_problems(before, needed=True))
    problems += [
        one.replace("MODEL.WEIGHTS", "--after") for one in weights_problems(after, needed=True)
    ]
    problems += [f"--shares: {one} is not from 0 to 1" for one in shares if not 0 <= one <= 1]
    if problems:
        raise SetupError(problems)
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = after
    asked = open_evaluation(cfg, args, [new_set, old_set], FOLDER, asked_by="--new or --old")
    model = asked.model
    part = open_vocabulary_part(model)
    assert part is not None  # the checks of the evaluation refuse others
    known = part.vocabulary  # the training's; each evaluation sets another
    tuned = _weights(model)
    SafeCheckpointer(model, required=WHOLE_MODEL).load(before)
    start = _weights(model)
    found = []
    for share in sorted({0.0, 1.0, *shares}):
        _take(model, average_weights(tuned, start, share))
        found.append(_measured(asked, share, metric))
    if not comm.is_main_process():
        return []
    best = chosen(found, keep)
    _take(model, average_weights(tuned, start, best.share))
    part.set_vocabulary(known)
    save_weights(model, asked.folder / WEIGHTS)
    write_mixtures(asked.folder / RESULTS, found, best)
    return found


def chosen(mixtures: Sequence[Mixture], keep: float) -> Mixture:
    """The best on the new names among those that keep enough of the old AP."""
    old = mixtures[0].old
    return max((one for one in mixtures if one.old >= keep * old), key=lambda one: one.new)


def mixtures_table(mixtures: Sequence[Mixture], best: Mixture) -> str:
    """A Markdown table, percent; the share that was taken is marked."""
    names = {mixtures[0].share: "before", mixtures[-1].share: "after"}
    body = [
        [
            f"{one.share:g}{' (' + names[one.share] + ')' if one.share in names else ''}",
            f"{one.new:.1f}",
            f"{one.old:.1f}",
            "taken" if one == best else "",
        ]
        for one in mixtures
    ]
    heads = ["share of the tuned weights", "AP, new names", "AP, old novel names", ""]
    return tabulate(body, heads, tablefmt="pipe", disable_numparse=True)


def write_mixtures(path: Path, mixtures: Sequence[Mixture], best: Mixture) -> None:
    """All shares, and which was taken."""
    content = {"taken": best.share, "mixtures": [asdict(one) for one in mixtures]}
    atomic_write_json(path, content)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers; not the vocabulary, which is no weight."""
    parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = model.state_dict().keys()
    return {name: one.detach().clone() for name, one in parts.items() if name in kept}


def _take(model: nn.Module, weights: dict[str, Tensor]) -> None:
    parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in weights.items():
        parts[name].data.copy_(value)


def _measured(asked: NamedEvaluation, share: float, metric: str) -> Mixture:
    new, old = (asked.evaluate(one) for one in asked.test_sets)
    if not comm.is_main_process():
        return Mixture(share, 0.0, 0.0)
    numbers = _number(new, metric, asked, 0), _number(old, f"{metric}_novel", asked, 1)
    return Mixture(share, *numbers)


def _number(results: dict[str, Any], metric: str, asked: NamedEvaluation, place: int) -> float:
    found = results.get(TASK, {}).get(metric)
    if found is None:
        name = asked.test_sets[place].name
        raise SetupError([f"{name} has no {TASK}/{metric}: it needs boxes of such categories"])
    return float(found)
