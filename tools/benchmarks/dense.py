"""What dense features cost beside open_clip's own forward pass, on the CPU.

What is compared takes turns in one run; ratios are medians over the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks import distillation, fvit
from benchmarks.documents import Document, origin
from benchmarks.speed import Row, Timed, operations_of, ratio_of, time_alternately
from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.untrained import untrained_model

ROUNDS = 5
WINDOW = 16  # patches per side


@dataclass(frozen=True)
class Case:
    """A tower with random weights and the side of its square images, pixels."""

    architecture: str
    side: int


CASES = (
    Case("EVA02-B-16", 224),
    Case("EVA02-B-16", 640),
    Case("ViT-B-16", 224),
    Case("ViT-B-16", 640),
)


def measure(
    cases: Sequence[Case] = CASES, rounds: int = ROUNDS, *, compiled: bool = False
) -> list[Row]:
    """A row per case.

    Args:
        cases: towers and sizes.
        rounds: that are counted.
        compiled: also through `torch.compile`, which takes a minute or two per case.
    """
    return [_row(case, rounds, compiled) for case in cases]


def _row(case: Case, rounds: int, compiled: bool) -> Row:
    visual = _at_size(untrained_model(case.architecture).visual.eval(), case.side)
    images = torch.randn(1, 3, case.side, case.side)
    dense = DenseViT(visual)
    windows = DenseViT(visual, window=WINDOW, global_blocks=[dense.depth - 1])
    things: dict[str, Timed] = {
        "forward": _without_graph(visual, images),
        "dense": _without_graph(dense, images),
        "windows": _without_graph(windows, images),
    }
    if compiled:
        things["compiled"] = _without_graph(torch.compile(DenseViT(visual)), images)
    title = f"{case.architecture}, {case.side} px"
    seconds = time_alternately(things, rounds, title)
    operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
    row: Row = {"name": title}
    for name in list(things)[1:]:
        row[f"{name}_over"] = round(ratio_of(seconds, name, "forward"), 3)
        if name != "compiled":
            row[f"{name}_operations"] = round(operations[name] / operations["forward"], 3)
    return row


def _without_graph(module: Any, images: Tensor) -> Timed:
    def run(_: int) -> None:
        with torch.no_grad():
            module(images)

    return run


def _at_size(visual: Any, side: int) -> nn.Module:
    """The same tower for another size of images, as open_clip itself would be made for it."""
    if hasattr(visual, "trunk"):
        visual.trunk.set_input_size(img_size=side)
        return visual
    patch, width = visual.patch_size[0], visual.conv1.out_channels
    visual.grid_size = (side // patch, side // patch)
    table = torch.randn(1 + visual.grid_size[0] * visual.grid_size[1], width)
    visual.positional_embedding = nn.Parameter(table)
    return visual


def table_of(rows: Sequence[Row]) -> str:
    """In Markdown, of the rows that are of towers."""
    rows = [row for row in rows if "dense_over" in row]
    heads = {
        "name": "tower, image",
        "dense_over": "dense / forward, time",
        "dense_operations": "operations",
        "windows_over": f"in windows of {WINDOW} / forward, time",
        "windows_operations": "operations ",
        "compiled_over": "dense, compiled / forward, time",
    }
    used = [key for key in heads if any(key in row for row in rows)]
    table = [[row.get(key) for key in used] for row in rows]
    return tabulate(table, headers=[heads[key] for key in used], tablefmt="pipe", missingval="-")


def page(document: Document) -> str:
    """The whole page, from what was measured."""
    rows = document["rows"]
    detector = fvit.tables_of(rows)
    return f"""# Dense features in numbers

{origin(document)}; numbers:
[results/dense.json](results/dense.json). Random weights, one image, on the CPU. What is compared
took turns; a ratio is the median over the rounds. Operations are those of convolutions and matrix
products, attention's included.

## A pass

`forward` is open_clip's own pass at the same size, which ends with one embedding per image; `dense`
ends with one per patch ([DenseViT](../ovd_d2/clip/dense/vit.py)): its last block has no attention,
its projection is of all patches. In windows: the blocks before the last one look at windows of
{WINDOW} x {WINDOW} patches and at CLS.

{table_of(rows)}

## A step of CLIPSelf

The step as it is trained, from 8-bit pixels and the teacher's crops to the optimizer, over forward
and backward pass of the student alone. There are about as many crops for the student's patches as
in the recipe with 1024 px.

{distillation.table_of(rows)}

## F-ViT

Inference up to masks in boxes, with {fvit.CASE.architecture} on {fvit.CASE.side} px: a tenth of the
pixels of the OV-LVIS recipe, and a tenth of its proposals and detections.

{detector["inference"]}

A training step of the same, where the tower's features come with a graph and gradients go through
the tower, though nothing in it trains, over the step as it is, without graph (memory: bytes of
tensors at the worst moment, beyond weights and the optimizer's state):

{detector["training"]}
"""
