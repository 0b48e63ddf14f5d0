"""Grids, crops, proposals and the inputs of student and teacher (section 5 of the README)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image
from torch import Tensor

from ovd_d2.data.augmentation import build_augmentations
from ovd_d2.engine.run import load_config
from ovd_d2.golden import INSTANCE, Found, GoldenFolder, Part, difference
from ovd_d2.projects.clipself.crops import enlarged, fitted_crop, fitted_size, pixel_windows
from ovd_d2.projects.clipself.golden.weights import random_image
from ovd_d2.projects.clipself.grids import grid_cells, grid_choices
from ovd_d2.projects.clipself.preprocess import normalised, padded_square
from ovd_d2.projects.clipself.proposals import JsonProposals
from ovd_d2.projects.clipself.regions import Proposals, Sample

PLACES = 1e-6  # tolerance of images and boxes
CONFIG = Path(__file__).parents[2] / "configs" / "clipself_base.yaml"
# OpenAI's and EVA-CLIP's, of pixels in [0, 1]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CROP_SIZE = 224  # of the proposals' crops
AREA, CROP_SCALE, LIMIT = (8.0**2, 1024.0**2), 1.5, 20  # the public code's


def _data(folder: GoldenFolder, file: str) -> Found:
    """Every tensor but those of the panoptic evaluation (`pan_*`)."""
    golden = folder.tensors(file)
    yield from _grids(golden)
    yield from _inputs(folder, golden)
    yield from _proposals(folder, golden)


def student_image(pixels: np.ndarray, side: int) -> Tensor:
    """(H, W, 3) -> (3, h, w) uint8 by the augmentation of the configs."""
    sizes = ["INPUT.LSJ.SIZE", str(side), "MODEL.CLIPSELF.IMAGE_SIZE", str(side)]
    cfg = load_config(str(CONFIG), ["MODEL.DEVICE", "cpu", *sizes])
    seen = T.AugInput(pixels)
    T.AugmentationList(build_augmentations(cfg, is_train=True))(seen)
    return torch.from_numpy(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))


def teacher_crops(pixels: np.ndarray, windows: np.ndarray, side: int) -> Tensor:
    """(K, 3, side, side) uint8."""
    whole = Image.fromarray(pixels)
    crops = np.stack([fitted_crop(whole, one, side) for one in windows])
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def _grids(golden: Mapping[str, Tensor]) -> Found:
    choices = torch.tensor(sorted(grid_choices(6)))
    name = "grid_choices_mn"
    yield name, difference(choices, torch.tensor(sorted(golden[name].tolist()))), 0.0
    for name, expected in golden.items():
        if match := re.fullmatch(r"grid_(boxes|crop_px)_(\d+)x(\d+)_m(\d+)_n(\d+)", name):
            kind, (width, height, rows, columns) = match[1], map(int, match.groups()[1:])
            cells = grid_cells(rows, columns, height, width)
            if kind == "boxes":  # the public code's borders are sums of float32
                longest = max(height, width)
                apart = difference(torch.from_numpy(cells) / longest, expected / longest)
            else:
                windows = pixel_windows(cells, height, width)
                apart = difference(torch.from_numpy(windows), expected)
            yield name, apart, PLACES if kind == "boxes" else 0.0


def _inputs(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    for name, expected in golden.items():
        match = re.fullmatch(r"(student|teacher)_(\d+)_(\d+)x(\d+)_(\w+)", name)
        if match is None:
            continue
        who, what = match[1], match[5]
        side, width, height = map(int, match.groups()[1:4])
        if what.startswith("content"):
            yield name, difference(_content(who, height, width, side), expected), 0.0
            continue
        pixels = random_image(folder, f"prep_image:{width}x{height}", height, width)
        if who == "student":
            ours = padded_square([student_image(pixels, side)], side)
        else:
            ours = teacher_crops(pixels, np.array([[0, 0, width, height]]), side)
        ours = sampled(normalised(ours, MEAN, STD)[0], expected)
        yield name, difference(ours, expected), PLACES


def _content(who: str, height: int, width: int, side: int) -> Tensor:
    rows, columns = fitted_size(height, width, side)
    top, left = (side - rows) // 2, (side - columns) // 2
    if who == "student":
        return torch.tensor([rows, columns])
    return torch.tensor([top, left, top + rows, left + columns])


def sampled(ours: Tensor, theirs: Tensor) -> Tensor:
    """What of ours the reference is of: every k-th number in each dimension, as shapes say."""
    steps = [max(1, n // max(1, m)) for n, m in zip(ours.shape, theirs.shape, strict=True)]
    return ours[tuple(slice(None, None, k) for k in steps)]


class _InOrder:
    """The order of a generator that does not shuffle: drawn boxes are those that come first."""

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


def _proposals(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    width, height = golden["prop_image_wh"].tolist()
    drawn = _drawn(golden["prop_boxes_xywh_in"], height, width)
    slots = golden["prop_boxes_out"]
    kept = slots[:, 4] > 0
    longest = max(height, width)
    order = _matching(torch.from_numpy(drawn.boxes / longest), slots[kept, :4])
    boxes = torch.from_numpy(drawn.boxes / longest).float()[order]
    yield "prop_boxes_out", difference(boxes, slots[kept, :4]), PLACES
    crops = torch.from_numpy(enlarged(drawn.boxes, CROP_SCALE, height, width)).float()[order]
    yield "prop_crop_boxes_xyxy", difference(crops, golden["prop_crop_boxes_xyxy"]), 1e-4
    pixels = random_image(folder, "prop_image", height, width)
    expected = golden["prop_crops_s16"]
    crops = teacher_crops(pixels, drawn.windows[order.numpy()], CROP_SIZE)
    inputs = normalised(crops, MEAN, STD)
    yield "prop_crops_s16", difference(sampled(inputs, expected), expected), PLACES
    empty = _drawn(golden["prop_boxes_xywh_in"][:0], height, width)
    box = torch.from_numpy(empty.boxes / longest).float()
    expected = golden["prop_empty_boxes_out"]
    yield "prop_empty_boxes_out", difference(box, expected[expected[:, 4] > 0, :4]), PLACES
    name = "prop_empty_crop_xyxy"
    yield name, difference(torch.from_numpy(empty.windows), golden[name]), 0.0


def _drawn(boxes: Tensor, height: int, width: int) -> Sample:
    """What the sampler makes of one image's boxes, (N, 4) XYWH, out of a file, in their order."""
    results = [{"image_id": 1, "bbox": one} for one in boxes.double().tolist()]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "proposals.json")
        path.write_text(str(results).replace("'", '"'), encoding="utf-8")
        sampler = Proposals(JsonProposals(path), limit=LIMIT, area=AREA, crop_scale=CROP_SCALE)
    return sampler(1, height, width, _InOrder())  # type: ignore[arg-type]


def _matching(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which of ours is each of theirs: the public code shuffles. All, where numbers differ."""
    if len(ours) != len(theirs):
        return torch.arange(len(ours))
    return torch.cdist(theirs.double(), ours.double()).argmin(dim=1)


PARTS = (Part("data", ("c_data.safetensors", INSTANCE), _data),)
