"""Losses by hand, assignment by its definition, DropBlock, offsets across levels, ranks."""

import math

import pytest
import torch
from torch import nn

from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.assignment import BACKGROUND, assign, iou_with_last_pixel
from ovd_d2.projects.glip.backbone import drop_block
from ovd_d2.projects.glip.box_coder import decode, encode
from ovd_d2.projects.glip.dyconv import DyConv
from ovd_d2.projects.glip.large_kernel import LargeKernelConv
from ovd_d2.projects.glip.losses import (
    LossSettings,
    centerness_targets,
    giou_losses,
    mean_over_ranks,
    token_focal_loss,
)
from ovd_d2.projects.glip.model import last_pixels, original_scale
from ovd_d2.projects.glip.postprocess import Candidates, Selection, select
from tests.processes import exit_code, start_ranks

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def test_the_focal_loss_by_hand():
    logits = torch.tensor([[[0.0, math.log(3), 5.0]]])
    targets = torch.tensor([[[1.0, 0.0, 1.0]]])
    mask = torch.tensor([[True, True, False]])
    expected = 0.25 * 0.5**2 * math.log(2) + 0.75 * 0.75**2 * math.log(4)
    assert token_focal_loss(logits, targets, mask).item() == pytest.approx(expected, rel=1e-6)


def test_the_focal_loss_takes_its_alpha_and_gamma():
    logits, targets = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = token_focal_loss(logits, targets, mask, LossSettings(alpha=0.9, gamma=1.0))
    expected = 0.9 * 0.5 * math.log(2) + 0.1 * 0.75 * math.log(4)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_large_kernels_see_each_level_by_itself():
    torch.manual_seed(0)
    block = LargeKernelConv(32)
    levels = [torch.randn(2, 32, 6, 5), torch.randn(2, 32, 3, 3)]
    together = block(levels)
    assert [one.shape for one in together] == [one.shape for one in levels]
    assert torch.equal(together[1], block(levels[1:])[0])


def test_giou_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 3, 3]])
    targets = torch.tensor([[0.0, 0, 2, 1], [2, 0, 3, 1], [5, 5, 7, 7]])
    # half of it; apart, a third of the enclosure between them; the wrong way round: empty
    expected = [0.5, 1 + 1 / 3, 1.0]
    torch.testing.assert_close(giou_losses(boxes, targets), torch.tensor(expected))


def test_centerness_by_hand():
    anchors = torch.tensor([[3.0, 3, 7, 7], [1, 3, 3, 7]])
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(2, 4)
    expected = torch.tensor([1.0, math.sqrt(2 / 8)])
    torch.testing.assert_close(centerness_targets(anchors, boxes), expected)


def test_the_coder_comes_back():
    anchors = torch.cat(grid_anchors(SIZES))
    boxes = anchors + torch.rand(len(anchors), 4, generator=torch.manual_seed(0))
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3, rtol=0)
    one = torch.tensor([[0.0, 0, 9, 9]])  # ten pixels wide
    assert encode(one + 1, one).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_assignment_by_its_definition():
    anchors = grid_anchors(SIZES)
    whole = torch.cat(anchors)
    boxes = torch.tensor([[3.0, 5, 40, 50], [20, 8, 90, 60], [21, 9, 88, 61], [70, 40, 78, 47]])
    iou = iou_with_last_pixel(whole, boxes)
    centers = (whole[:, :2] + whole[:, 2:]) / 2
    best = torch.full((len(whole),), -1.0)
    expected = torch.full((len(whole),), BACKGROUND)
    for k, box in enumerate(boxes):
        candidates, first = [], 0
        for level in anchors:
            apart = ((level[:, :2] + level[:, 2:]) / 2 - (box[:2] + box[2:]) / 2).norm(dim=1)
            candidates += [first + one for one in apart.argsort()[:9].tolist()]
            first += len(level)
        found = iou[candidates, k]
        for one in candidates:
            inside = (centers[one] > box[:2] + 0.01).all() and (centers[one] < box[2:] - 0.01).all()
            if iou[one, k] >= found.mean() + found.std() and inside and iou[one, k] > best[one]:
                best[one], expected[one] = iou[one, k], k
    assert torch.equal(assign(anchors, boxes), expected)
    assert (expected >= 0).sum() > 4


def test_no_box_is_all_background():
    assert (assign(grid_anchors(SIZES), torch.zeros(0, 4)) == BACKGROUND).all()


def test_the_last_pixel_is_that_of_the_original_image():
    one = {"image": torch.zeros(3, 50, 100), "height": 100, "width": 200}
    assert original_scale(one) == (0.5, 0.5)
    boxes = torch.tensor([[0.0, 0, 100, 50]])
    assert last_pixels(boxes, (0.5, 0.5)).tolist() == [[0, 0, 99.5, 49.5]]
    assert original_scale({"image": torch.zeros(3, 5, 7)}) == (1.0, 1.0)


def test_drop_block_drops_squares_of_all_channels():
    torch.manual_seed(0)
    maps = torch.ones(2, 3, 60, 60)
    dropped = drop_block(maps, 0.3, 3)
    kept = dropped[:, 0] > 0
    assert all(torch.equal(kept, one > 0) for one in dropped.unbind(1))
    assert 0.2 < 1 - kept.float().mean() < 0.32
    assert dropped.mean() == pytest.approx(1.0, abs=1e-5)  # the rest is scaled
    columns = (~kept).float()[:, None]
    inner = -nn.functional.max_pool2d(-columns, 3, 1)  # middles of whole squares
    whole = nn.functional.max_pool2d(nn.functional.pad(inner, (2, 2, 2, 2)), 3, 1)
    assert torch.equal(whole[..., 3:-3, 3:-3], columns[..., 3:-3, 3:-3])


@pytest.mark.parametrize("across", ["resized", "flat"])
def test_offsets_of_no_offset_are_the_same_in_every_size(across):
    torch.manual_seed(0)
    maps = [torch.randn(2, 32, *size) for size in SIZES]
    parts = []
    for how in (across, "resized"):
        torch.manual_seed(1)
        parts.append(DyConv(32, across_levels=how).eval())
        nn.init.zeros_(parts[-1].offsets_and_mask.weight)
        nn.init.zeros_(parts[-1].offsets_and_mask.bias)
    for one, other in zip(parts[0](maps), parts[1](maps), strict=True):
        torch.testing.assert_close(one, other)


def test_flat_offsets_are_read_as_they_lie():
    part = DyConv(16, across_levels="flat")
    maps = torch.arange(2 * 18 * 4 * 6).reshape(2, 18, 4, 6).float()
    fitted = part._fitted(maps, (2, 3))
    assert fitted.shape == (2, 18, 2, 3)
    assert fitted[1].flatten().tolist() == maps[1].flatten()[: 18 * 6].tolist()


def test_suppression_is_over_all_prompts():
    box = torch.tensor([[0.0, 0, 9, 9]])
    first = Candidates(box, torch.tensor([0.5]), torch.tensor([4]))
    second = Candidates(torch.cat([box + 1, box]), torch.tensor([0.9, 0.8]), torch.tensor([4, 7]))
    found = select([first, second], (20, 20), Selection())
    assert found.labels.tolist() == [4, 7]  # 81 of 119 pixels are shared: 0.68 > 0.6
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(select([first, second], (20, 20), Selection(nms_threshold=0.7)).labels) == 3
    assert len(select([first, second], (20, 20), Selection(limit=1)).labels) == 1


def test_two_ranks_divide_by_their_mean():
    def check(rank):
        value = torch.tensor(float(1 + 4 * rank), requires_grad=True)
        mean = mean_over_ranks(value)
        assert mean == 3.0 and not mean.requires_grad
        with torch.no_grad():  # a validation on one rank must not wait for the other
            assert mean_over_ranks(value) == 1 + 4 * rank

    assert [exit_code(child) for child in start_ranks(2, check)] == [0, 0]
