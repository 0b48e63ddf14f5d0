"""Numbers of an evaluation as TensorBoard scalars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import EventStorage, TensorboardXWriter


def defined(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested results without the undefined ones (nan: a group that has no ground truth), which
    Detectron2's event storage and its writers do not expect."""
    kept: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            kept[key] = defined(value)
        elif not math.isnan(value):
            kept[key] = value
    return kept


def write_scalars(results: Mapping[str, Any], folder: str, iteration: int) -> None:
    """Writes the defined numbers as scalars ("segm/APr") to a TensorBoard event file in `folder`.

    For evaluations outside of training; training has Detectron2's event storage.

    Args:
        results: what the trainer's `test` returned.
        folder: OUTPUT_DIR; the scalars continue those of the training there.
        iteration: of the evaluated checkpoint.
    """
    with EventStorage(iteration) as storage:
        storage.put_scalars(**flatten_results_dict(defined(results)), smoothing_hint=False)
        writer = TensorboardXWriter(folder)
        writer.write()
        writer.close()
