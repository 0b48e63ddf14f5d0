from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image

from ovd_d2 import visualization
from ovd_d2.visualization import (
    BASE_COLOR,
    NOVEL_COLOR,
    SheetRow,
    draw_instances,
    picture_sheet,
    readable_scale,
)

NAMES = ["anchor", "a name that is much too long to be printed in full"]
IS_NOVEL = [False, True]
IMAGE = np.full((160, 160, 3), 128, dtype=np.uint8)
BOX = [40.0, 60.0, 100.0, 120.0]


def predictions(classes: list[int], scores: list[float], masks: bool = False) -> Instances:
    instances = Instances((160, 160))
    instances.pred_boxes = Boxes(torch.tensor([BOX] * len(classes)).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores)
    if masks:
        instances.pred_masks = torch.zeros(len(classes), 160, 160, dtype=torch.bool)
        instances.pred_masks[:, 70:110, 50:90] = True
    return instances


def annotation(category_id: int, **extra: object) -> dict[str, object]:
    x0, y0, x1, y1 = BOX
    box = [x0, y0, x1 - x0, y1 - y0]
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, **extra}


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture.astype(int) - color).max(axis=2) <= 3).any())


@pytest.mark.parametrize("height, width, scale", [(160, 200, 3), (480, 640, 1), (1024, 1024, 1)])
def test_small_images_grow(height, width, scale):
    assert readable_scale(height, width) == scale
    image = np.zeros((height, width, 3), dtype=np.uint8)
    drawn = draw_instances(image, [], NAMES, IS_NOVEL)
    assert drawn.shape == (height * scale, width * scale, 3)
    assert drawn.dtype == np.uint8


def test_base_is_blue_and_novel_orange():
    base = draw_instances(IMAGE, predictions([0], [0.9]), NAMES, IS_NOVEL)
    novel = draw_instances(IMAGE, predictions([1], [0.9]), NAMES, IS_NOVEL)
    assert has_color(base, BASE_COLOR) and not has_color(base, NOVEL_COLOR)
    assert has_color(novel, NOVEL_COLOR) and not has_color(novel, BASE_COLOR)


def test_the_box_is_where_it_should_be():
    drawn = draw_instances(IMAGE, predictions([0], [0.9]), NAMES, IS_NOVEL)
    line = np.abs(drawn[270].astype(int) - BASE_COLOR).max(axis=1) <= 3  # through the middle
    columns = np.flatnonzero(line)
    assert abs(columns.min() - 3 * BOX[0]) <= 3 and abs(columns.max() - 3 * BOX[2]) <= 3


def test_low_scores_are_left_out():
    low = predictions([0, 1], [0.9, 0.2])
    drawn = draw_instances(IMAGE, low, NAMES, IS_NOVEL, score_threshold=0.5)
    assert has_color(drawn, BASE_COLOR) and not has_color(drawn, NOVEL_COLOR)


def test_nothing_to_draw_leaves_the_image():
    for nothing in (predictions([], []), predictions([], [], masks=True), []):
        np.testing.assert_array_equal(
            draw_instances(IMAGE, nothing, NAMES, IS_NOVEL, scale=1), IMAGE
        )


def test_masks_tint_their_pixels_only():
    drawn = draw_instances(IMAGE, predictions([0], [0.9], masks=True), NAMES, IS_NOVEL, scale=1)
    assert (drawn[90, 70] != 128).any()
    assert (drawn[115, 95] == 128).all()  # in the box, outside the mask


def test_annotations_and_ground_truth_instances_look_the_same():
    mask = np.zeros((160, 160), dtype=np.uint8)
    mask[70:110, 50:90] = 1
    truth = Instances((160, 160))
    truth.gt_boxes = Boxes(torch.tensor([BOX]))
    truth.gt_classes = torch.tensor([1])
    truth.gt_masks = BitMasks(torch.as_tensor(mask)[None])
    polygon = [[50.0, 70.0, 90.0, 70.0, 90.0, 110.0, 50.0, 110.0]]
    from_instances = draw_instances(IMAGE, truth, NAMES, IS_NOVEL, scale=1)
    from_annotation = draw_instances(
        IMAGE, [annotation(1, segmentation=polygon)], NAMES, IS_NOVEL, scale=1
    )
    np.testing.assert_allclose(
        from_instances[80:100, 60:80].astype(int), from_annotation[80:100, 60:80], atol=1
    )
    assert (from_annotation[90, 70] != 128).any()


def test_labels():
    two = visualization._as_drawable(predictions([0, 1], [0.876, 1.0]), 160, 160, 0.0)
    assert two.label(0, NAMES, IS_NOVEL) == "anchor 88%"
    assert two.label(1, NAMES, IS_NOVEL) == "★ a name that is much too l… 100%"
    plain = visualization._as_drawable([annotation(0)], 160, 160, 0.0)
    assert plain.label(0, NAMES, IS_NOVEL) == "anchor"


def test_labels_keep_apart_and_inside():
    box = np.array([150.0, 0.0, 159.0, 10.0])
    first = visualization._place_label(box, (60.0, 12.0), (160, 160), [])
    second = visualization._place_label(box, (60.0, 12.0), (160, 160), [first])
    assert visualization._overlap(first, second) == 0
    for left, top, right, bottom in (first, second):
        assert left >= 0 and top >= 0 and right <= 160 and bottom <= 160


@pytest.mark.parametrize(
    "image, names, objects, message",
    [
        (IMAGE.astype(np.float32), NAMES, [], r"uint8 RGB, got \(160, 160, 3\) float32"),
        (IMAGE[:, :, 0], NAMES, [], r"got \(160, 160\) uint8"),
        (IMAGE, NAMES[:1], [], "1 names but 2 novel flags"),
        (IMAGE, NAMES, [annotation(7)], r"classes \[7\], but there are 2 names"),
    ],
)
def test_wrong_input(image, names, objects, message):
    with pytest.raises(ValueError, match=message):
        draw_instances(image, objects, names, IS_NOVEL)


@pytest.mark.parametrize("scenes, columns, lines", [(1, 1, 1), (2, 2, 1), (3, 2, 2)])
def test_sheet_shape(tmp_path, scenes, columns, lines):
    row = SheetRow(IMAGE, [annotation(0)], predictions([1], [0.9]))
    path = tmp_path / "new" / "sheet.png"
    picture_sheet([row] * scenes, path, "title", names=NAMES, novel=IS_NOVEL)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        width, height = sheet.size
        left, right = np.asarray(sheet)[:, : width // 2], np.asarray(sheet)[:, width // 2 :]
    assert width == 2 * 24 + columns * (2 * 480 + 6) + (columns - 1) * 30
    assert height == 24 + 48 + 40 + 32 + lines * 486 - 6 + 24
    if scenes == 1:  # below the legend: truth on the left, predictions on the right
        assert has_color(left[150:], BASE_COLOR) and not has_color(left[150:], NOVEL_COLOR)
        assert has_color(right[150:], NOVEL_COLOR) and not has_color(right[150:], BASE_COLOR)
    assert [one.name for one in path.parent.iterdir()] == ["sheet.png"]


def test_sheet_grows_for_a_long_title(tmp_path):
    row = SheetRow(IMAGE, [], [])
    picture_sheet([row], tmp_path / "a.png", "words " * 40, names=NAMES, novel=IS_NOVEL)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size[0] > 2000


def test_an_error_keeps_the_old_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="no scenes to draw"):
        picture_sheet([], path, "title", names=NAMES, novel=IS_NOVEL)
    with pytest.raises(ValueError, match="classes"):
        picture_sheet(
            [SheetRow(IMAGE, [annotation(9)], [])], path, "t", names=NAMES, novel=IS_NOVEL
        )
    assert path.read_bytes() == b"old"
