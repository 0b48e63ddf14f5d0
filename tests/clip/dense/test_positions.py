"""Resizing of position embeddings, by hand."""

import torch

from ovd_d2.clip.dense.positions import resize_positions


def test_the_same_grid_is_the_same_tensor():
    table = torch.randn(6, 4)
    assert resize_positions(table, (2, 3), (2, 3)) is table


def test_rows_and_columns_keep_their_place():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    larger = resize_positions(table, (4, 4), (8, 4)).reshape(8, 4, 2)
    # row 3 of 8 lies at 1.25 of 4: PyTorch's kernel (a = -0.75) at 1.25, 0.25, 0.75, 1.75
    kernel = torch.tensor([-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    torch.testing.assert_close(larger[3, 0, 0], kernel @ torch.arange(4.0))
    torch.testing.assert_close(larger[0, :, 1], torch.arange(4.0))


def test_without_antialiasing_a_single_position_can_vanish():
    table = torch.zeros(64, 1)
    table[1] = 1.0  # in the first row
    small = resize_positions(table, (8, 8), (8, 1))
    smooth = resize_positions(table, (8, 8), (8, 1), antialias=True)
    assert small.abs().sum() == 0 and smooth.abs().sum() > 0
