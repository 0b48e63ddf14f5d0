"""Segments of the panoptic evaluation: `pan_*` of `c_data` (section 5 of the README)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ovd_d2.golden import INSTANCE, Found, GoldenFolder, Part, difference
from ovd_d2.projects.clipself.region_classification.segments import Segments, counting_segments

TOLERANCE = 1e-6
PATCH = 16  # pixels


def _panoptic(folder: GoldenFolder, file: str) -> Found:
    """Boxes, crops and masks of a small picture."""
    golden = folder.tensors(file)
    if "pan_ids" not in golden:  # a small copy may lack them
        return
    side = folder.instance["c_data"]["pan_student_size"] // PATCH
    rows = golden["pan_segments_id_cat_xywh"]
    segments = counting_segments(golden["pan_ids"].numpy(), _entries(golden))
    kept = [rows[:, 0].tolist().index(one) for one in segments.ids.tolist()]
    longest = max(segments.size)
    ours = torch.zeros(len(rows), 8)
    ours[kept] = _row(segments, longest)
    yield "pan_boxes_out", difference(ours, golden["pan_boxes_out"]), TOLERANCE
    crops = segments.crop_boxes
    yield "pan_crop_boxes_xyxy", difference(crops, golden["pan_crop_boxes_xyxy"]), TOLERANCE
    for name, antialias in (("no_antialias", False), ("antialias", True)):
        masks = torch.zeros(len(rows), side, side, dtype=torch.uint8)
        found = segments.on_grid(side / longest, (side, side), antialias=antialias)
        masks[kept] = found.to(torch.uint8)
        name = f"pan_masks_out_{name}"
        yield name, difference(masks, golden[name]), 0.0


def _entries(golden: dict[str, Tensor]) -> list[dict[str, Any]]:
    """As Detectron2 lists them; what is thing is known of those that came out alone."""
    rows = golden["pan_segments_id_cat_xywh"].tolist()
    places = {one: k for k, one in enumerate(sorted({row[1] for row in rows}))}
    things = _things(rows, golden["pan_boxes_out"][:, 7].tolist())
    return [
        {"id": one, "category_id": places[cat], "isthing": cat in things, "bbox": box}
        for one, cat, *box in rows
    ]


def _things(rows: list[list[int]], flags: list[float]) -> set[int]:
    return {row[1] for row, flag in zip(rows, flags, strict=True) if flag}


def _row(segments: Segments, longest: int) -> Tensor:
    """(K, 8): box in sides of the square, category, valid, area, whether it is a thing."""
    boxes = segments.boxes
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rest = [segments.classes, torch.ones(len(boxes)), areas, segments.is_thing]
    return torch.cat([boxes / longest, torch.stack(rest, dim=1)], dim=1)


PARTS = (Part("panoptic", ("c_data.safetensors", INSTANCE), _panoptic),)
