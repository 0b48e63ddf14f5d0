"""On the CPU beside Detectron2's own: whole images, masks, selection, memory; official parts.

What is compared takes turns in one run; ratios are medians over the rounds.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor
from tqdm import tqdm

from benchmarks import end_to_end, official_cost
from benchmarks.documents import Document, origin, table
from benchmarks.memory import peak_memory
from benchmarks.speed import (
    HEAD_DIM,
    HEAD_REGIONS,
    Row,
    Timed,
    classification,
    ratio_of,
    time_alternately,
)
from ovd_d2.modeling import BoxMasks

MASK_SIDE = 28
NAMES = 20_000


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults take four minutes on two quiet cores.

    Attributes:
        cases: end to end.
        images: (height, width) of the images that masks are pasted into.
        masks: per image.
        rounds: that are counted, of masks and of selection.
        compared: images per size whose pixels are compared.
        names: to select from.
        large: (height, width) and masks of the image whose memory is measured.
        official: pixels per side, rounds and config options, of the official network's cost.
    """

    cases: Sequence[end_to_end.Case] = end_to_end.CASES
    images: Sequence[tuple[int, int]] = ((160, 160), (480, 640), (800, 1333), (1024, 1024))
    masks: int = 100
    rounds: int = 7
    compared: int = 25
    names: int = NAMES
    large: tuple[tuple[int, int], int] = ((800, 1333), 300)
    official: tuple[int, int, Sequence[str]] = (320, 2, ())


def measure(sizes: Sizes | None = None) -> list[Row]:
    """All rows for the JSON document."""
    sizes = sizes or Sizes()
    return [
        *end_to_end.measure(sizes.cases),
        *(mask_row(image, sizes.masks, sizes.rounds, sizes.compared) for image in sizes.images),
        *selection_rows(sizes.names, sizes.rounds),
        memory_row(*sizes.large),
        *official_cost.measure(*sizes.official),
    ]


def random_masks(count: int, image_size: tuple[int, int], seed: int) -> BoxMasks:
    """Blobs, up to half of the image's sides long, somewhere in it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 1, 4, 4, generator=generator)
    blobs = torch.nn.functional.interpolate(noise, (MASK_SIDE, MASK_SIDE), mode="bilinear")[:, 0]
    size = torch.tensor(image_size[::-1], dtype=torch.float32)
    extent = 1 + torch.rand(count, 2, generator=generator) * size / 2
    low = torch.rand(count, 2, generator=generator) * (size - extent).clamp(min=0)
    return BoxMasks(blobs, torch.cat([low, low + extent], dim=1), image_size)


def detectron2_pixels(masks: BoxMasks) -> Tensor:
    """(N, height, width) bool."""
    return paste_masks_in_image(masks.probabilities, masks.boxes, masks.image_size)


def detectron2_records(masks: BoxMasks) -> list[dict[str, Any]]:
    """Run lengths as Detectron2's evaluators make them."""
    return [
        pycocotools.mask.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
        for mask in detectron2_pixels(masks)
    ]


def mask_row(image_size: tuple[int, int], count: int, rounds: int, compared: int) -> Row:
    """How many times faster masks become pixels and run lengths, and how many pixels differ."""
    masks = random_masks(count, image_size, seed=0)
    title = f"{count} masks, {image_size[0]} x {image_size[1]} px"
    things: dict[str, Timed] = {
        "their pixels": lambda _: detectron2_pixels(masks),
        "our pixels": lambda _: masks.to_bitmasks(),
        "their records": lambda _: detectron2_records(masks),
        "our records": lambda _: masks.to_rle(),
    }
    seconds = time_alternately(things, rounds, title)
    others = [random_masks(count, image_size, seed) for seed in range(compared)]
    differing = sum(map(_differing, tqdm(others, f"{title}, compared", unit="image")))
    return {
        "name": title,
        "pixels_faster": round(ratio_of(seconds, "their pixels", "our pixels"), 1),
        "records_faster": round(ratio_of(seconds, "their records", "our records"), 1),
        "masks_compared": count * compared,
        "pixels_compared": count * compared * image_size[0] * image_size[1],
        "pixels_differing": differing,
    }


def _differing(masks: BoxMasks) -> int:
    return int((detectron2_pixels(masks) != masks.to_bitmasks().tensor).sum())


def selection_rows(names: int, rounds: int) -> list[Row]:
    """Classifying and selecting among many names over their matrix product alone."""
    regions, words = torch.randn(HEAD_REGIONS, HEAD_DIM), torch.randn(names, HEAD_DIM)
    things: dict[str, Timed] = {
        "product": lambda _: regions @ words.t(),
        "text branch": classification(names),
        "ensemble": classification(names, ensemble=True),
    }
    seconds = time_alternately(things, rounds, f"{names:,} names")
    products = {"text branch": 1, "ensemble": 2}
    return [
        {
            "name": f"{branches}, {HEAD_REGIONS:,} regions, {names:,} names",
            "products": count,
            "over_products": round(ratio_of(seconds, branches, "product") / count, 2),
        }
        for branches, count in products.items()
    ]


def memory_row(image_size: tuple[int, int], count: int) -> Row:
    """Megabytes at the worst moment from predicted masks to records, PyTorch's and NumPy's."""
    masks = random_masks(count, image_size, seed=0)
    return {
        "name": f"{count} masks, {image_size[0]} x {image_size[1]} px",
        "their_megabytes": round(_peak(partial(detectron2_records, masks)) / 1e6, 1),
        "our_megabytes": round(_peak(masks.to_rle) / 1e6, 1),
    }


def _peak(thing: Callable[[], Any]) -> int:
    """Bytes of tensors at once, and of NumPy's arrays and Python's objects at once, added."""
    tensors = peak_memory(thing)
    tracemalloc.start()
    try:
        thing()
        return tensors + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def tables_of(rows: Sequence[Row]) -> dict[str, str]:
    """Markdown by subject: "evaluation", "masks", "selection", "memory", "official"."""
    return {
        "evaluation": table(
            rows, name="image to records", ratio="time over time", floor="floor",
            operations="operations over operations",
        ),
        "masks": table(
            rows, name="pasting", pixels_faster="pixels, times faster",
            records_faster="run lengths, times faster", masks_compared="masks compared",
            pixels_compared="their pixels", pixels_differing="differ",
        ),
        "selection": table(
            rows, name="classify and select", products="matrix products",
            over_products="time over theirs",
        ),
        "memory": table(
            rows, name="peak of masks to records", their_megabytes="Detectron2, MB",
            our_megabytes="here, MB",
        ),
        "official": table(
            rows, name="official parts over Detectron2's", official_over="time over time",
            official_operations="operations over operations",
        ),
    }  # fmt: skip


def page(document: Document) -> str:
    """docs/results-inference.md."""
    tables = tables_of(document["rows"])
    return f"""# Inference in numbers

Against Detectron2's own code, on the CPU. {origin(document)}; numbers:
[results/inference.json](results/inference.json). What is compared took turns; a ratio is the median
over the rounds.

## An image, end to end

From the image to COCO's records of boxes and masks: ViLD-ensemble in this package's way over
Mask R-CNN of its width in Detectron2's, both with random weights, which give as many detections as
may be given. `floor`: ViLD-ensemble without masks' pixels and records over all of Mask R-CNN. The
operations are those of convolutions and matrix products, where ViLD-ensemble has a head more;
pooling, NMS, pasting and encoding masks are not among them. Many detections are one region under
several names (the Pictograms network has 50 regions for its 100 or 300 detections): here its mask
is predicted and encoded once, in Detectron2 once per detection.

{tables["evaluation"]}

## Masks

Predicted masks of {MASK_SIDE} x {MASK_SIDE} in boxes of up to half of the image's sides:
Detectron2's `paste_masks_in_image`, and after it pycocotools' encoding as in its evaluators. A
pixel can differ where the probability is the threshold up to rounding.

{tables["masks"]}

{tables["memory"]}

## Many names

Embeddings of regions to detections, random ones of width {HEAD_DIM}; the ensemble's two branches
need two matrix products.

{tables["selection"]}

## The official network

The full recipe (vild_r50.yaml) over the same with Detectron2's parts in place of the official ones
([recipes.md](recipes.md), "value by value"), random weights, one image:

{tables["official"]}
"""
