"""Features of boxes and masks, by hand."""

import torch

from ovd_d2.clip.dense import mask_features, roi_features


def test_a_box_over_whole_cells_is_their_mean():
    dense = torch.arange(32.0).reshape(1, 2, 4, 4)
    boxes = [torch.tensor([[20.0, 0, 40, 20], [0, 0, 40, 40]])]
    found = roi_features(dense, boxes, [(40, 40)])  # cells of 10
    # cells are averaged by points of RoIAlign's grid in them, which lie on their centres
    torch.testing.assert_close(found[0], dense[0, :, :2, 2:].mean(dim=(1, 2)))
    torch.testing.assert_close(found[1], dense[0].mean(dim=(1, 2)))


def test_images_of_other_sizes_and_maps_that_are_not_square():
    dense = torch.arange(2 * 8.0).reshape(2, 1, 2, 4)
    boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0, 25, 30]])]
    found = roi_features(dense, boxes, [(10, 10), (60, 100)])  # cells 30 high, 25 wide
    assert found.tolist() == [[8.0]]


def test_a_box_without_area_and_no_boxes():
    dense = torch.ones(1, 3, 4, 4)
    assert roi_features(dense, [torch.tensor([[5.0, 5, 5, 5]])], [(32, 32)]).tolist() == [[0] * 3]
    assert roi_features(dense, [torch.zeros(0, 4)], [(32, 32)]).shape == (0, 3)


def test_masks():
    dense = torch.arange(8.0).reshape(2, 2, 2)
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]])
    assert mask_features(dense, masks.bool()).tolist() == [[0.5, 4.5], [3, 7], [0, 0]]
    assert mask_features(dense, masks[:0]).shape == (0, 2)


def test_gradients_reach_the_map():
    dense = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    boxes = [torch.tensor([[0.5, 0.3, 2.6, 2.2]], dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda x: roi_features(x, boxes, [(3, 3)]), (dense,))
    masks = torch.rand(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mask_features(x[0], masks), (dense,))
