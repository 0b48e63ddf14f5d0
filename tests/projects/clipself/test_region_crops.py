"""Crops of the teacher, and the student's square, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from ovd_d2.projects.clipself.crops import enlarged, fitted_crop, fitted_size, pixel_windows
from ovd_d2.projects.clipself.preprocess import normalised, padded_square

WHITE = Image.new("RGB", (40, 30), (255, 255, 255))


def test_sizes_round_half_to_even():
    assert fitted_size(302, 512, 896) == (528, 896)  # 528.5
    assert fitted_size(306, 512, 896) == (536, 896)  # 535.5
    assert fitted_size(480, 640, 1024) == (768, 1024)
    assert fitted_size(1, 5000, 224) == (1, 224)


def test_pixels_as_pillow_rounds_them():
    boxes = np.array([[0.5, 1.5, 2.5, 3.5], [0.51, 1.49, 7.9, 8.0]])
    assert pixel_windows(boxes, 20, 20).tolist() == [[0, 2, 2, 4], [1, 1, 8, 8]]
    for box, window in zip(boxes, pixel_windows(boxes, 20, 20), strict=True):
        width, height = WHITE.crop(tuple(box)).size
        assert (width, height) == (window[2] - window[0], window[3] - window[1])


@pytest.mark.parametrize(
    "box", [(3.1, 2, 3.4, 9), (40, 30, 40, 30), (39.6, 0, 40, 30), (0, 0, 0, 0), (5, 29.8, 9, 30)]
)
def test_slivers_have_a_pixel(box):
    (window,) = pixel_windows(np.array([box], dtype=float), 30, 40)
    assert (window[:2] >= 0).all() and (window[2:] <= (40, 30)).all()
    assert (window[2:] > window[:2]).all()
    crop = fitted_crop(WHITE, window, 24)
    assert crop.shape == (24, 24, 3) and crop.max() == 255


def test_boxes_grow_about_their_centres_and_stay_inside():
    boxes = np.array([[10, 10, 20, 14], [0, 0, 4, 4], [35, 20, 45, 40]], dtype=float)
    expected = [[7.5, 9, 22.5, 15], [0, 0, 5, 5], [32.5, 15, 40, 30]]
    assert enlarged(boxes, 1.5, 30, 40).tolist() == expected


def test_crops_are_centred_the_odd_pixel_of_black_comes_last():
    crop = fitted_crop(WHITE, np.array([0, 0, 40, 30]), 10)  # 8 rows (7.5 to even)
    rows = np.flatnonzero(crop.any(axis=(1, 2)))
    assert (rows[0], rows[-1]) == (1, 8)
    crop = fitted_crop(WHITE, np.array([0, 0, 10, 30]), 10)  # 3 columns: 3 before, 4 after
    columns = np.flatnonzero(crop.any(axis=(0, 2)))
    assert (columns[0], columns[-1]) == (3, 5)
    assert set(np.unique(crop)) == {0, 255}


def test_the_students_padding_is_black_at_the_right_and_below():
    images = [torch.full((3, 2, 4), 255, dtype=torch.uint8), torch.ones(3, 4, 1).byte()]
    batch = padded_square(images, 4)
    assert batch.dtype == torch.uint8 and batch.shape == (2, 3, 4, 4)
    assert batch[0, :, :2].eq(255).all() and batch[0, :, 2:].eq(0).all()
    assert batch[1, :, :, :1].eq(1).all() and batch[1, :, :, 1:].eq(0).all()
    mean, std = (0.5, 0.25, 0.1), (0.5, 0.25, 0.2)
    padding = normalised(batch, mean, std)[0, :, 3, 3]
    assert padding.tolist() == pytest.approx([-1.0, -1.0, -0.5])
    assert normalised(batch, mean, std)[0, :, 0, 0].tolist() == pytest.approx([1.0, 3.0, 4.5])
