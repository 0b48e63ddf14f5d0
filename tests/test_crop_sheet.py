from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ovd_d2.crop_sheet import SIDE, Crop, CropBox, crop_sheet, crop_window, shortened
from ovd_d2.visualization import BASE_COLOR, NOVEL_COLOR, label_font


def crop(image=None, *, novel=True, dashed=False, box=(40, 40, 20, 20)) -> Crop:
    return Crop(image, [CropBox(box, novel, dashed)], "anchor 90%", True, ("really: bell", "a.png"))


def has_color(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(axis=-1).any())


@pytest.mark.parametrize(
    ("boxes", "window"),
    [
        ([(40, 40, 20, 20)], (28, 28, 72, 72)),  # 12 pixels of context at least
        ([(40, 40, 40, 20)], (20, 10, 100, 90)),  # half of the longer side
        ([(40, 40, 10, 10), (60, 40, 20, 10)], (20, 5, 100, 85)),  # both boxes
        ([(0, 0, 20, 20)], (0, 0, 44, 44)),  # moved into the image
        ([(0, 0, 300, 50)], (0, 0, 200, 100)),  # cut to the image
        ([(500, 500, 0, 0)], (176, 76, 200, 100)),  # outside and empty
    ],
)
def test_window(boxes, window):
    assert crop_window(boxes, width=200, height=100) == window


def test_sheet_has_a_cell_for_every_crop(tmp_path):
    image = np.full((100, 200, 3), 90, dtype=np.uint8)
    for number, columns in ((1, 1), (6, 6), (7, 6)):
        path = tmp_path / f"{number}.png"
        crop_sheet(iter([crop(image)] * number), number, path, "Sheet")
        with Image.open(path) as sheet:
            assert sheet.width >= columns * SIDE
            assert (sheet.height > 2 * SIDE) is (number > 6)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1.png", "6.png", "7.png"]


@pytest.mark.parametrize("novel", [True, False])
@pytest.mark.parametrize("dashed", [True, False])
def test_boxes_say_what_they_are(tmp_path, novel, dashed):
    image = np.full((100, 200, 3), 90, dtype=np.uint8)
    crop_sheet([crop(image, novel=novel, dashed=dashed)], 1, tmp_path / "a.png", "Sheet")
    with Image.open(tmp_path / "a.png") as sheet:
        # the cell only: captions are orange, too
        pixels = np.asarray(sheet)[120 : 120 + SIDE - 20, 30 : 20 + SIDE]
    assert has_color(pixels, NOVEL_COLOR) is novel
    assert has_color(pixels, BASE_COLOR) is not novel
    assert has_color(pixels, (255, 255, 255)) is dashed  # the gaps


def test_a_missing_image_leaves_a_grey_cell(tmp_path):
    crop_sheet([crop(None)], 1, tmp_path / "a.png", "Sheet")
    with Image.open(tmp_path / "a.png") as sheet:
        assert has_color(np.asarray(sheet), (222, 226, 230))


def test_boxes_far_outside_and_without_area_are_drawn(tmp_path):
    image = np.zeros((30, 30, 3), dtype=np.uint8)
    odd = [crop(image, box=box) for box in ((900, 900, 5, 5), (3, 3, 0, 0), (-50, -50, 900, 900))]
    crop_sheet(odd, 3, tmp_path / "a.png", "Sheet")
    assert (tmp_path / "a.png").is_file()


def test_no_crops(tmp_path):
    with pytest.raises(ValueError, match=r"no crops to draw for .*a\.png"):
        crop_sheet([], 0, tmp_path / "a.png", "Sheet")


def test_long_text_is_cut():
    font = label_font(14)
    assert shortened("short", 200, font) == "short"
    cut = shortened("a very long caption " * 5, 200, font)
    assert cut.endswith("…") and font.getlength(cut) <= 200
