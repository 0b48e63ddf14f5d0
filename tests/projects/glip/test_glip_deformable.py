"""Deformable convolutions on the CPU are torchvision's, only quicker."""

from unittest.mock import patch

import pytest
import torch
from torchvision.ops import deform_conv2d

from ovd_d2.projects.glip import deformable
from ovd_d2.projects.glip.deformable import deformable_conv


def inputs(stride=1, reach=1.0, dtype=torch.float32):
    """Offsets of which many go over the border, of whole pixels, too."""
    torch.manual_seed(0)
    size = (11 + stride - 1) // stride, (14 + stride - 1) // stride
    offsets = reach * torch.randn(2, 18, *size)
    offsets[0, :, :3] = offsets[0, :, :3].round()
    whole = (torch.randn(2, 6, 11, 14), offsets, torch.rand(2, 9, *size))
    return [one.to(dtype) for one in (*whole, torch.randn(8, 6, 3, 3), torch.randn(8))]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("reach", [0.0, 1.0, 20.0])
@torch.no_grad()
def test_it_is_torchvisions(stride, reach):
    image, offsets, mask, weight, bias = inputs(stride, reach, torch.float64)
    expected = deform_conv2d(image, offsets, weight, bias, stride, padding=1, mask=mask)
    with (
        patch.object(deformable, "_ROWS", 37),  # neither a row's nor an image's size
        patch.object(deformable, "deform_conv2d", side_effect=AssertionError),
    ):
        found = deformable_conv(image, offsets, mask, weight, bias, stride)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_in_single_precision():
    image, offsets, mask, weight, bias = inputs(reach=3.0)
    expected = deform_conv2d(image, offsets, weight, bias, padding=1, mask=mask)
    found = deformable_conv(image, offsets, mask, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_torchvisions(stride):
    image, offsets, mask, weight, bias = moved = inputs(stride, dtype=torch.float64)
    for one in moved:
        one.requires_grad_()

    def gradients(output):
        return torch.autograd.grad((output * output.detach().cos()).sum(), moved)

    whole = deform_conv2d(image, offsets, weight, bias, stride, padding=1, mask=mask)
    with patch.object(deformable, "_ROWS", 37):
        found = gradients(deformable_conv(image, offsets, mask, weight, bias, stride))
    torch.testing.assert_close(found, gradients(whole), rtol=1e-9, atol=1e-9)
