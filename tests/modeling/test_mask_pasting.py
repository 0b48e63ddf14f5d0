"""Masks pasted from their boxes are Detectron2's, and so are their run lengths."""

import tracemalloc

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.layers.mask_ops import _do_paste_mask, paste_masks_in_image
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ovd_d2.modeling import masks as module
from ovd_d2.modeling.masks import BoxMasks, postprocess

# Rounding differs: a pixel this near to the threshold may fall on either side of it.
TIE = 2e-6
SIZES = [(97, 131), (61, 61), (33, 157), (1, 151), (151, 1), (119, 64)]


def random_boxes(kind, count, image_size, generator):
    """Of a part of the image, tiny, partly outside, nearly without area, huge; whole pixels."""
    size = torch.tensor(image_size[::-1], dtype=torch.float32)
    low = torch.rand(count, 2, generator=generator) * size
    extent = torch.rand(count, 2, generator=generator)
    if kind == "part":
        extent = extent * size / 2 + 1
    elif kind == "tiny":
        extent = extent * 2 + 0.01
    elif kind == "outside":
        low, extent = low * 1.4 - 0.2 * size, extent * size
    elif kind == "thin":
        extent = extent * torch.tensor([1e-3, 1.0]) * size + 1e-4
    elif kind == "huge":
        low, extent = low - size, 20 * size
    elif kind == "whole":
        low, extent = low.floor(), (extent * size / 2).ceil()
    boxes = torch.cat([low, low + extent], dim=1)
    boxes[:, :2] = boxes[:, :2].minimum(size - 0.01)  # Detectron2 pastes none that are out of it
    boxes[:, 2:] = boxes[:, 2:].clamp(min=0.01)
    return boxes


def random_masks(count, side, generator):
    """Half of them noise, half of them sharp, where interpolation hits 0.5 often."""
    masks = torch.rand(count, side, side, generator=generator)
    masks[::2] = masks[::2].round()
    return masks


def make(count=40, side=28, image_size=(97, 131), kind="outside", seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(kind, count, image_size, generator)
    return BoxMasks(random_masks(count, side, generator), boxes, image_size)


def encoded(mask):
    rle = pycocotools.mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode("ascii")}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("side", [28, 20, 1, 7, 56])
@pytest.mark.parametrize("kind", ["part", "tiny", "outside", "thin", "huge", "whole"])
def test_pixels_are_detectron2s(kind, side, seed):
    """10,000 masks in all; those pixels alone differ that are at the threshold."""
    image_size = SIZES[(seed + side) % len(SIZES)]
    masks = make(167, side, image_size, kind, seed)
    expected = paste_masks_in_image(masks.probabilities, masks.boxes, image_size)
    found = masks.to_bitmasks().tensor
    assert found.shape == expected.shape and found.dtype == expected.dtype == torch.bool
    for k in (found != expected).flatten(1).any(dim=1).nonzero()[:, 0].tolist():
        one = masks[k : k + 1]
        soft, _ = _do_paste_mask(one.probabilities[None], one.boxes, *image_size, skip_empty=False)
        assert (soft[0][found[k] != expected[k]] - 0.5).abs().max() < TIE
    assert found.any() or kind in ("thin", "huge")  # the pixels' centres, or the mask, are outside
    assert masks.to_rle() == [encoded(mask) for mask in found]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.9])
def test_other_thresholds(threshold):
    made = make(kind="part")
    masks = BoxMasks(made.probabilities, made.boxes, made.image_size, threshold)
    expected = paste_masks_in_image(masks.probabilities, masks.boxes, masks.image_size, threshold)
    assert (masks.to_bitmasks().tensor != expected).sum() <= 2
    assert masks.to_rle() == [encoded(mask) for mask in masks.to_bitmasks().tensor]


def test_a_mask_worked_out_by_hand():
    """Two cells over four columns; a full column and one that goes on at the next one's top."""
    masks = BoxMasks(
        torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[1.0, 0.0, 5.0, 2.0]]), (2, 6)
    )
    # centres at 1/8, 3/8, 5/8, 7/8 of the box: 1, 0.75, 0.25, 0 of the left cells
    expected = torch.tensor([[0, 1, 1, 0, 0, 0]] * 2, dtype=torch.bool)
    assert torch.equal(masks.to_bitmasks().tensor, expected[None])
    compressed = pycocotools.mask.frPyObjects({"size": [2, 6], "counts": [2, 4, 6]}, 2, 6)
    assert masks.to_rle() == [{"size": [2, 6], "counts": compressed["counts"].decode()}]


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 9], [9, 9, 5, 5], [40, 5, 60, 9], [-9, 5, -2, 9], [5, 0, 9, -7]]
)
def test_a_box_without_area_in_the_image_has_an_empty_mask(box):
    masks = BoxMasks(torch.ones(1, 28, 28), torch.tensor([box], dtype=torch.float32), (20, 30))
    assert not masks.to_bitmasks().tensor.any()
    assert masks.to_rle() == [encoded(torch.zeros(20, 30))]


def test_no_masks_at_all():
    masks = BoxMasks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30))
    assert masks.to_bitmasks().tensor.shape == (0, 20, 30)
    assert masks.to_bitmasks().tensor.dtype == torch.bool
    assert masks.to_rle() == []


def test_run_lengths_need_no_full_size_masks():
    masks = make(300, image_size=(400, 666), kind="part")
    masks[:5].to_rle()
    tracemalloc.start()
    masks.to_rle()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * 300 * 400 * 666


def test_equal_masks_are_pasted_once(monkeypatch):
    masks = make(count=6, kind="part")
    expected = masks.to_rle()
    pasted = []
    weights = module._weights
    monkeypatch.setattr(module, "_weights", lambda *args: pasted.append(args) or weights(*args))
    repeated = masks[[3, 0, 3, 5, 0, 3]]
    other_mask = BoxMasks(masks.probabilities[[1]], masks.boxes[[3]], masks.image_size)
    records = BoxMasks.cat([repeated, other_mask]).to_rle()
    assert records[:6] == [expected[k] for k in [3, 0, 3, 5, 0, 3]]
    assert records[6] == other_mask.to_rle()[0] != expected[3]
    assert len(pasted) == 2 * (4 + 1)  # two sides each


def test_half_precision_and_gradients_do_not_matter():
    masks = make(kind="part")
    half = BoxMasks(masks.probabilities.half().requires_grad_(), masks.boxes, masks.image_size)
    rounded = BoxMasks(masks.probabilities.half().float(), masks.boxes, masks.image_size)
    assert torch.equal(half.to_bitmasks().tensor, rounded.to_bitmasks().tensor)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.to_bitmasks().tensor, rounded.to_bitmasks().tensor)


def test_instances_hold_them():
    masks = make(10, kind="part")
    full = masks.to_bitmasks().tensor
    found = Instances(masks.image_size, pred_masks=masks, scores=torch.arange(10))
    chosen = found[found.scores % 3 == 0]
    assert len(chosen.pred_masks) == 4
    assert torch.equal(chosen.pred_masks.to_bitmasks().tensor, full[::3])
    both = Instances.cat([found[2:4], found[[7]]]).to("cpu").pred_masks
    assert torch.equal(both.to_bitmasks().tensor, full[[2, 3, 7]])
    assert "3 in an image of (97, 131)" in repr(both)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got \(2, 5, 5\) and \(3, 4\)"):
        BoxMasks(torch.zeros(2, 5, 5), torch.zeros(3, 4), (9, 9))
    with pytest.raises(ValueError, match=r"got \(2, 5, 6\) and \(2, 4\)"):
        BoxMasks(torch.zeros(2, 5, 6), torch.zeros(2, 4), (9, 9))


def raw_detections(masks):
    made = make(30, kind="outside", image_size=(64, 80))
    found = Instances((64, 80), pred_boxes=Boxes(made.boxes.clone()), scores=torch.rand(30))
    found.pred_boxes.tensor[5, 2:] = found.pred_boxes.tensor[5, :2]  # empty: is left out
    if masks:
        found.pred_masks = made.probabilities[:, None]
    return found


@pytest.mark.parametrize("masks", [True, False])
def test_postprocessing_is_detectron2s(masks):
    expected = detector_postprocess(raw_detections(masks), 97, 120)
    found = postprocess(raw_detections(masks), 97, 120)
    assert found.image_size == expected.image_size == (97, 120)
    assert 0 < len(found) == len(expected) < 30
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert found.has("pred_masks") is masks
    if masks:
        assert (found.pred_masks != expected.pred_masks).sum() <= 2
        boxed = postprocess(raw_detections(masks), 97, 120, full_masks=False).pred_masks
        assert torch.equal(boxed.to_bitmasks().tensor, found.pred_masks)
