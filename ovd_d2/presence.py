"""Whether a name is in an image at all: a calibrated probability of its best score.

Scores rank boxes; they are no probabilities. Here the best score of a name in an image gives one,
by a temperature and a bias on its log-odds (Platt, 1999), fitted to names that are known to be in
an image or not. What the teacher makes of the crop of the best box can be a second feature: a
detector's scores of names that are there and of names that are not overlap, and CLIP knows single
objects better. How many names are absent depends on who asks, so both kinds count alike: presence
is the probability where half of the names asked for are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write_json, read_text, sha256_file

FILE = "presence.json"  # beside the weights
SCHEMA = "ovd_d2.presence/2"  # 1 knew no crops
LEAST_SCORE = 0.01  # lower scores, and names without any, say the same
BINS = 10


@dataclass(frozen=True)
class Presence:
    """Best score of a name in an image -> probability that the image shows one.

    `sigmoid(logit(score) / temperature + crop_weight * logit(crop) + bias)`, where `crop` is the
    teacher's probability that the crop of the best box shows the name.

    Attributes:
        temperature: above 0.
        bias: added to the log-odds.
        least: below this presence a name should give nothing; chosen when it was fitted.
        crop_weight: 0 or more; 0: the teacher is not asked.
        measured: what was measured then, for people to read.
    """

    temperature: float
    bias: float
    least: float
    crop_weight: float = 0.0
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.bias, self.least, self.crop_weight)
        if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in numbers):
            raise ValueError(
                f"temperature, bias, least and crop_weight must be finite numbers, got {numbers}"
            )
        if self.temperature <= 0 or not 0 <= self.least <= 1 or self.crop_weight < 0:
            raise ValueError(
                f"temperature {self.temperature}, least {self.least} and crop_weight "
                f"{self.crop_weight}: expected one above 0, one from 0 to 1 and one of 0 or more"
            )

    def of(self, scores: Tensor, crops: Tensor | None = None) -> Tensor:
        """
        Args:
            scores: (...) best scores in [0, 1].
            crops: (...) what the teacher says, in [0, 1]; not read where `crop_weight` is 0.

        Returns:
            (...) probabilities, float64.

        Raises:
            ValueError: `crop_weight` is above 0, and there are no `crops`.
        """
        odds = _log_odds(scores) / self.temperature + self.bias
        if self.crop_weight:
            if crops is None:
                raise ValueError("this presence was fitted with crops, and none are given")
            odds += self.crop_weight * _log_odds(crops)
        return odds.sigmoid()

    def save(self, weights: Path) -> Path:
        """Writes `presence.json` beside the weights that it holds for; returns its path."""
        path = weights.parent / FILE
        content = {"schema": SCHEMA, "weights_sha256": sha256_file(weights), **asdict(self)}
        atomic_write_json(path, content)
        return path


def load_presence(weights: str) -> Presence | None:
    """What was fitted for a local file of weights; None where nothing was.

    Raises:
        SetupError: the file beside them is damaged, or of other weights.
    """
    path = Path(weights).parent / FILE
    if not weights or "://" in weights or not (Path(weights).is_file() and path.is_file()):
        return None
    again = "run tools/calibrate_presence.py again, or remove it"
    try:
        content = json.loads(read_text(path))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema: expected '{SCHEMA}', found {content['schema']!r}")
        of = content["weights_sha256"]
        found = Presence(**{key: content[key] for key in Presence.__dataclass_fields__})
    except (KeyError, TypeError, ValueError) as error:
        raise SetupError([f"{path} is no calibration of presence ({error!r}): {again}"]) from error
    if of != sha256_file(weights):
        raise SetupError([f"{path} is of other weights than {weights}: {again}"])
    return found


def fit_presence(scores: Tensor, present: Tensor, crops: Tensor | None = None) -> Presence:
    """The calibration under which presence is most likely; both kinds of names count alike.

    Args:
        scores: (P,) best scores in [0, 1], one per image and name.
        present: (P,) bool.
        crops: (P,) what the teacher says, in [0, 1]; None: it is not asked.

    Returns:
        With a least presence of 0.

    Raises:
        SetupError: names of one kind are missing, or those that are there score no higher.
    """
    there, absent = int(present.sum()), int((~present).sum())
    if not (there and absent):
        raise SetupError(
            [f"{there} names that are in an image and {absent} that are not: both are needed"]
        )
    odds = torch.stack([_log_odds(one) for one in (scores, crops) if one is not None], dim=1)
    # Platt's targets: short of 0 and 1, so that kinds without overlap have a finite optimum
    target = torch.where(present, (there + 1) / (there + 2), 1 / (absent + 2)).double()
    weights = _balanced(present)
    start = [1.0, *[0.0] * odds.shape[1]]  # slopes, then the bias
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = odds @ parameters[:-1] + parameters[-1]
        value = F.binary_cross_entropy_with_logits(logits, target, weights, reduction="sum")
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    *slopes, bias = parameters.tolist()
    if min(slopes) < 1e-3 or bool((odds == odds[0]).all()):
        raise SetupError(
            [
                "names that are in an image score no higher than those that are not: train the "
                "model further, or look at the annotations"
            ]
        )
    return Presence(1 / slopes[0], bias, 0.0, *slopes[1:])


class Bin(NamedTuple):
    """Of a reliability plot.

    Attributes:
        presence: mean of what was said.
        rate: share of names that are in the image.
        weight: of this bin among all.
    """

    presence: float
    rate: float
    weight: float


def reliability(presences: Tensor, present: Tensor, bins: int = BINS) -> list[Bin]:
    """What was said beside what is, in bins of equal width; both kinds of names count alike.

    Args:
        presences: (P,) probabilities.
        present: (P,) bool.
        bins: empty ones are left out.
    """
    weights = _balanced(present)
    places = (presences * bins).long().clamp(max=bins - 1)
    found = []
    for place in places.unique().tolist():
        inside = places == place
        share = weights[inside]
        weight = float(share.sum())
        said = float((share * presences[inside]).sum()) / weight
        found.append(Bin(said, float(share[present[inside]].sum()) / weight, weight))
    return found


def calibration_error(presences: Tensor, present: Tensor) -> float:
    """The mean distance of the bins of :func:`reliability` from the diagonal (expected
    calibration error)."""
    bins = reliability(presences, present)
    return sum(one.weight * abs(one.presence - one.rate) for one in bins)


def least_presence(presences: Tensor, boxes: Sequence[int] | Tensor, false_boxes: float) -> float:
    """The smallest presence from which on absent names give few boxes.

    Args:
        presences: (A,) float64, of absent names.
        boxes: (A,) how many boxes each of them gives.
        false_boxes: per absent name, at most.
    """
    order = presences.argsort(descending=True, stable=True)
    given = torch.as_tensor(boxes)[order].cumsum(0)
    too_many = (given > false_boxes * len(presences)).nonzero()
    if not len(too_many):
        return 0.0
    return min(1.0, math.nextafter(float(presences[order[too_many[0]]]), 2.0))


def _log_odds(scores: Tensor) -> Tensor:
    return torch.logit(scores.double(), eps=LEAST_SCORE)


def _balanced(present: Tensor) -> Tensor:
    """(P,) weights; those of present and of absent names add up to one half each, or to one where
    there are none of the others."""
    kinds = [one for one in (present, ~present) if one.any()]
    weights = torch.zeros(len(present), dtype=torch.float64)
    for one in kinds:
        weights[one] = 1 / (len(kinds) * int(one.sum()))
    return weights
