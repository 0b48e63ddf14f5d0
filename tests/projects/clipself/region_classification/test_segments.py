"""Which segments count, their boxes, crops and masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from ovd_d2.projects.clipself.region_classification.segments import (
    counting_segments,
    mask_on_grid,
    read_id_map,
    with_crops,
)
from ovd_d2.projects.clipself.segment_sets import ids_to_rgb


def entry(number, box, thing=True, category=0):
    return {"id": number, "bbox": box, "isthing": thing, "category_id": category}


def id_map(*boxes, size=(60, 80)):
    found = np.zeros(size, dtype=np.int32)
    for number, (x, y, w, h) in enumerate(boxes, start=1):
        found[y : y + h, x : x + w] = number
    return found


def test_boxes_of_things_are_annotated_and_those_of_stuff_end_at_the_last_pixel():
    boxes = [(10, 20, 20, 30), (40, 0, 40, 60)]
    found = counting_segments(
        id_map(*boxes), [entry(1, (9.5, 20, 20, 30)), entry(2, (0, 0, 80, 60), thing=False)]
    )
    assert found.boxes.tolist() == [[9.5, 20, 29.5, 50], [40, 0, 79, 59]]
    assert found.crop_boxes.tolist() == [[4.5, 12.5, 34.5, 57.5], [40, 0, 79, 59]]
    assert found.is_thing.tolist() == [True, False]


def test_crops_of_things_scale_with_their_boxes():
    entries = [entry(1, (10, 20, 20, 30)), entry(2, (0, 0, 80, 60), thing=False)]
    found = counting_segments(id_map((10, 20, 20, 30), (40, 0, 40, 60)), entries, crop_scale=1)
    assert torch.equal(found.crop_boxes, found.boxes)


def test_area_limits_include_their_ends():
    areas = [(8, 8), (7.9, 8), (1024, 1024), (1024, 1025)]
    entries = [entry(k, (0, 0, *one)) for k, one in enumerate(areas, start=1)]
    assert counting_segments(id_map((0, 0, 9, 9)), entries).ids.tolist() == [1, 3]


def test_stuff_without_pixels_is_left_out():
    assert len(counting_segments(id_map(), [entry(5, (0, 0, 50, 50), thing=False)])) == 0


def test_the_first_hundred_segments_are_looked_at():
    entries = [entry(k, (0, 0, 3 if k == 3 else 20, 20)) for k in range(1, 131)]
    found = counting_segments(id_map((0, 0, 20, 20)), entries)
    assert found.ids.tolist() == [1, 2, *range(4, 101)]  # number 3, too small, takes a place


def test_no_segments():
    found = counting_segments(id_map(), [])
    assert len(found) == 0 and found.boxes.shape == (0, 4)
    assert found.on_grid(0.1, (6, 8), antialias=False).shape == (0, 6, 8)
    assert with_crops(found, np.zeros((60, 80, 3), np.uint8), 32).crops.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("size", [(60, 80), (61, 79), (8, 100), (1, 200)])
def test_masks_of_odd_sizes_fill_their_part_of_the_grid(size):
    mask = torch.ones(size, dtype=torch.bool)
    scale = 8 / max(size)
    on_grid = mask_on_grid(mask, scale, (8, 8))
    height, width = (max(1, round(side * scale)) for side in size)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:height, :width] = True
    assert torch.equal(on_grid, expected)


def test_antialiasing_makes_masks_larger():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:35, 16:35] = True
    without = mask_on_grid(mask, 1 / 8, (8, 8), antialias=False)
    with_it = mask_on_grid(mask, 1 / 8, (8, 8), antialias=True)
    assert without.sum() < with_it.sum() and (without & ~with_it).sum() == 0
    speck = torch.zeros(64, 64, dtype=torch.bool)
    speck[0, 0] = True  # between the pixels that the other looks at
    assert not mask_on_grid(speck, 1 / 8, (8, 8), antialias=False).any()
    assert mask_on_grid(speck, 1 / 8, (8, 8), antialias=True).any()


def test_crops_are_centred_and_padded_with_black():
    pixels = np.full((60, 80, 3), 200, dtype=np.uint8)
    segments = counting_segments(id_map((0, 0, 40, 20)), [entry(1, (0, 0, 80, 30), thing=False)])
    crop = with_crops(segments, pixels, 32).crops[0]  # 39 x 19 -> 32 x 16
    assert crop.shape == (3, 32, 32)
    rows = crop.amax(dim=(0, 2)).tolist()
    assert rows == [0] * 8 + [200] * 16 + [0] * 8


def test_ids_of_png_files_have_24_bits(tmp_path):
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]], dtype=np.int32)
    Image.fromarray(ids_to_rgb(ids)).save(tmp_path / "ids.png")
    assert np.array_equal(read_id_map(str(tmp_path / "ids.png")), ids)
