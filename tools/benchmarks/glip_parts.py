"""What fusion, kept text and deformable convolutions cost GLIP-T and GLIP-L, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.documents import table
from benchmarks.glip import CASES, FULL_SIZE, Case, attend_by_definition, build
from benchmarks.memory import peak_memory
from benchmarks.speed import Row, operations_of, ratio_of, time_alternately
from ovd_d2.projects.glip import dyconv
from ovd_d2.projects.glip.deformable import deformable_conv
from ovd_d2.projects.glip.fusion import Fusion
from ovd_d2.projects.glip.model import GLIP, TOKEN_TARGETS
from ovd_d2.projects.glip.questions import TOKENS, Question

FUSED, PLAIN = CASES[2:]
LARGE = Case("GLIP-L", "glip_l", FULL_SIZE)
BOXES = ((10.0, 10.0, 60.0, 80.0), (40.0, 30.0, 150.0, 110.0))
STRIDES = (8, 16, 32, 64, 128)
GIB = 2**30
RATIO_COLUMNS = {
    "ratio": "of one image",
    "measured": "time",
    "operations": "operations",
    "over_floor": "over the floor",
}


def measure(
    question: Question,
    fused: Case = FUSED,
    plain: Case = PLAIN,
    large: Case = LARGE,
    rounds: int = 3,
) -> list[Row]:
    """
    Args:
        question: some tens of names in one caption.
        fused, plain: the same network with and without fusion.
        large: a network whose fusion's memory is estimated at its image size.
        rounds: that are counted.
    """
    models = {"fusion": build(fused), "none": build(plain)}
    training = "training step, with fusion / without"
    return [
        training_row(training, models, fused.size, question, rounds),
        training_row(
            f"{training}, no dropout", without_dropout(models), fused.size, question, rounds
        ),
        text_row(models["fusion"], fused.size, question, rounds),
        *attention_rows(models["fusion"], fused.size, len(question.ids), rounds),
        share_row(models["fusion"], fused.size, question),
        *memory_rows(large, len(question.ids)),
    ]


def without_dropout(models: Mapping[str, GLIP]) -> Mapping[str, GLIP]:
    """The same, whose dropout does nothing."""
    copies = deepcopy(models)
    for layer in (layer for model in copies.values() for layer in model.modules()):
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return copies


def training_row(
    name: str, models: Mapping[str, GLIP], size: tuple[int, int], question: Question, rounds: int
) -> Row:
    """Losses and gradients of one image, with fusion over without."""
    found = Instances(size, gt_boxes=Boxes(torch.tensor(BOXES)))
    targets = torch.zeros(len(BOXES), len(question.ids), dtype=torch.bool)
    targets[:, 1] = True
    found.set(TOKEN_TARGETS, targets)
    inputs = [{**image(size), TOKENS: question.ids, "instances": found}]

    def step(model: GLIP, _: int = 0) -> None:
        model.train().zero_grad()
        sum(model.losses(inputs).values()).backward()  # type: ignore[union-attr]

    steps = {name: partial(step, model) for name, model in models.items()}
    return ratio_row(name, steps, rounds)


def text_row(model: GLIP, size: tuple[int, int], question: Question, rounds: int) -> Row:
    """Detections of one image whose caption is new, over one that was asked before."""
    inputs = image(size)

    @torch.no_grad()
    def detect(forget: bool, _: int = 0) -> None:
        if forget:
            model._text_cache.clear()
        model.eval()._detect(inputs, [question])

    detect(False)
    detections = {"miss": partial(detect, True), "hit": partial(detect, False)}
    return ratio_row("detection, caption new / kept", detections, rounds)


def ratio_row(name: str, things: Mapping[str, Callable[..., Any]], rounds: int) -> Row:
    """Of two things, the first over the second: time, operations, and one over the other."""
    over, under = things
    operations = {key: operations_of(thing) for key, thing in things.items()}
    predicted = operations[over] / operations[under]
    measured = ratio_of(time_alternately(things, rounds, name), over, under)
    return {
        "ratio": name,
        "measured": round(measured, 3),
        "operations": round(predicted, 3),
        "over_floor": round(measured / predicted, 3),
    }


def attention_rows(model: GLIP, size: tuple[int, int], length: int, rounds: int) -> list[Row]:
    """A fusion layer, forward and backward, in three forms of the same numbers."""
    fusion = fusion_of(model).eval()
    text_width = fusion.text_key.in_features
    torch.manual_seed(0)
    maps = torch.randn(1, locations(size), fusion.image_query.in_features, requires_grad=True)
    text = torch.randn(1, length, text_width, requires_grad=True)
    mask = torch.ones(1, length, dtype=torch.bool)
    forms = {
        "definition": attend_by_definition,
        "scaled_dot_product_attention": attend_by_sdpa,
        "projections folded (ours)": Fusion.attend,
    }

    def both_ways(form: Callable[..., Any], _: int = 0) -> None:
        sum(one.square().mean() for one in form(fusion, maps, text, mask)).backward()

    seconds = time_alternately(
        {name: partial(both_ways, form) for name, form in forms.items()}, rounds, "fusion"
    )
    with torch.no_grad():
        expected, *_ = answers = [form(fusion, maps, text, mask) for form in forms.values()]
    return [
        {
            "form": name,
            "times_faster": round(ratio_of(seconds, "definition", name), 2),
            "difference": max(
                float((one - other).abs().max() / other.abs().max())
                for one, other in zip(found, expected, strict=True)
            ),
        }
        for name, found in zip(forms, answers, strict=True)
    ]


def attend_by_sdpa(
    fusion: Fusion, image: Tensor, text: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """`Fusion.attend` as two calls of PyTorch's attention, which keep no scores."""

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(2, (fusion.heads, -1)).transpose(1, 2)

    query, key = heads(fusion.image_query(image)), heads(fusion.text_key(text))
    seen = heads(fusion.text_values(text)), heads(fusion.image_values(image))
    for_image = F.scaled_dot_product_attention(query, key, seen[0], attn_mask=mask[:, None, None])
    for_text = F.scaled_dot_product_attention(key, query, seen[1])
    joined = [one.transpose(1, 2).flatten(2) for one in (for_image, for_text)]
    return fusion.image_output(joined[0]), fusion.text_output(joined[1])


@torch.no_grad()
def share_row(model: GLIP, size: tuple[int, int], question: Question) -> Row:
    """Of the time of one detection, what deformable convolutions take."""
    inputs = image(size)
    model.eval()._detect(inputs, [question])
    spent: list[float] = []
    with clocked(spent):
        start = time.perf_counter()
        model._detect(inputs, [question])
        whole = time.perf_counter() - start
    return {"share": "deformable convolutions", "of_detection": round(sum(spent) / whole, 3)}


@contextmanager
def clocked(spent: list[float]) -> Iterator[None]:
    """Seconds of every deformable convolution."""

    def timed(*inputs: Any, **options: Any) -> Tensor:
        start = time.perf_counter()
        found = deformable_conv(*inputs, **options)
        spent.append(time.perf_counter() - start)
        return found

    with patch.object(dyconv, "deformable_conv", timed):
        yield


def memory_rows(case: Case, length: int) -> list[Row]:
    """What all fusion layers keep for the backward pass at the case's image size, estimated.

    Measured for one layer at a sixteenth of the size; what is kept grows with the locations.
    """
    small = case.size[0] // 4, case.size[1] // 4
    model = build(replace(case, options=(*case.options, *_SMALL_BACKBONE)))
    fusion, count = fusion_of(model).train(), len(model.head.tower)
    maps = torch.randn(1, locations(small), fusion.image_query.in_features, requires_grad=True)
    text = torch.randn(1, length, fusion.text_key.in_features, requires_grad=True)
    mask = torch.ones(1, length, dtype=torch.bool)
    factor = count * locations(case.size) / locations(small) / GIB
    kept: list[Any] = []
    rows = []
    for form, attend in (("definition", attend_by_definition), ("ours", Fusion.attend)):
        kept.clear()
        once = partial(attend, fusion, maps, text, mask)
        peak = peak_memory(lambda once=once: kept.append(once()))  # type: ignore[misc]
        rows.append({"memory": form, "layers": count, "gib": round(peak * factor, 2)})
    inputs = maps.numel() * maps.element_size() * factor
    return [*rows, {"memory": "gradient checkpointing", "layers": count, "gib": round(inputs, 2)}]


# Only the tower is looked at.
_SMALL_BACKBONE = (
    *("MODEL.GLIP.SWIN.EMBED_DIM", 24, "MODEL.GLIP.SWIN.DEPTHS", (1, 1, 1, 1)),
    *("MODEL.GLIP.SWIN.NUM_HEADS", (1, 2, 4, 8)),
)


def fusion_of(model: GLIP) -> Fusion:
    """That of the first block."""
    fusion: Any = model.head.tower[0]
    return fusion.fusion


def image(size: tuple[int, int]) -> dict[str, Any]:
    """Noise."""
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return {"image": pixels, "height": size[0], "width": size[1]}


def locations(size: tuple[int, int]) -> int:
    """Of all levels."""
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in STRIDES)


def section(rows: Sequence[Row]) -> str:
    """Of the page, from what was measured."""
    (share,) = [row["of_detection"] for row in rows if "share" in row]
    return f"""## Parts of GLIP-T

The floor of a ratio of times is the ratio of operations.

{table(rows, **RATIO_COLUMNS)}

What is no operation and grows with fusion is mostly dropout: a random number per location, token
and head, in both directions.

A fusion layer with its gradients, in forms that give the same numbers; the difference is the
largest of the outputs, relative to the largest output:

{table(rows, form="form", times_faster="times faster than the definition", difference="difference")}

Deformable convolutions take {100 * share:.0f} % of a detection.

What all fusion layers of GLIP-L keep for the backward pass of one image of {FULL_SIZE[0]} x
{FULL_SIZE[1]} px in float32, estimated from one layer at a sixteenth of the size:

{table(rows, memory="form", layers="layers", gib="GiB")}
"""
