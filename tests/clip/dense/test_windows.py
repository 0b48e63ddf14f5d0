"""Windowed attention beside masks written out."""

import pytest
import torch
from torch.nn import functional as F

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.dense.windows import window_attention
from tests.tiny_vits import FAMILIES, SIDE, random_images, tiny_clip


def visible(grid, window):
    """(1 + h * w, 1 + h * w) bool: what each token may attend to."""
    rows, columns = torch.meshgrid(*(torch.arange(n) // window for n in grid), indexing="ij")
    own = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    same = (own[:, None] == own[None]).all(dim=2)
    return F.pad(F.pad(same, (1, 0), value=True), (0, 0, 1, 0), value=True)


@pytest.mark.parametrize("grid", [(4, 4), (6, 4), (5, 7), (1, 9), (3, 2)])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_attention_with_a_mask_written_out(grid, window):
    drawn = torch.randn(3, 2, 3, 1 + grid[0] * grid[1], 8, generator=torch.manual_seed(0))
    expected = F.scaled_dot_product_attention(*drawn, attn_mask=visible(grid, window))
    torch.testing.assert_close(window_attention(*drawn, grid, window), expected)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_that_covers_the_image_is_exact(family):
    visual = tiny_clip(family).visual
    images = random_images(2, 3, 40, SIDE)
    whole = DenseViT(visual)(images)
    torch.testing.assert_close(DenseViT(visual, window=5)(images), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(DenseViT(visual, window=99)(images), whole, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_global_blocks_see_the_image(family):
    visual = tiny_clip(family).visual
    images = random_images(1, 3, SIDE, SIDE)
    changed = images.clone()
    changed[:, :, -8:, -8:] += 1.0  # the last patch
    for global_blocks, reaches in ([(), False], [(0,), True]):
        # CLS carries news from one window to all, but not before the block after it
        dense = DenseViT(visual, window=2, global_blocks=global_blocks)
        taps = [dense.run(x, taps=[0]).taps[0] for x in (images, changed)]
        moved = (taps[0] - taps[1]).abs().amax(dim=(0, 1))  # (4, 4)
        assert bool((moved[:2, :2] > 0).any()) is reaches
        assert (moved[2:, 2:] > 0).all()


def test_gradients_pass_the_padding():
    drawn = torch.randn(
        3, 1, 2, 1 + 15, 4, generator=torch.manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: window_attention(*x, (3, 5), 2), (drawn,))
