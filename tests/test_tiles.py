"""Large images in tiles: a stand-in finds every coloured square that it sees whole or in part."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.prediction import Prediction
from ovd_d2.tiles import Window, predict_in_tiles, windows
from ovd_d2.vocabulary import Categories

LEAST, MOST = 6, 60  # px: of a square that the stand-in sees


class StandIn:
    """Boxes and masks of white spots of a fitting size; not calibrated."""

    def detected(self, images, names, threshold, channels):
        return [self.found_in(one) for one in images]

    def judged(self, found, image, names, channels, *, least_presence):
        return found

    def found_in(self, image):
        grey = (image[:, :, 0] > 127).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(grey)
        kept = [k for k in range(1, count) if LEAST <= max(stats[k][2:4]) <= MOST]
        corners = [[x, y, x + w, y + h] for x, y, w, h, _ in stats[kept]]
        boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
        masks = np.stack([labels == k for k in kept]) if kept else np.zeros((0, *grey.shape), bool)
        found = Instances(
            grey.shape,
            pred_boxes=Boxes(boxes),
            scores=torch.linspace(0.9, 0.5, len(kept)),
            pred_classes=torch.zeros(len(kept), dtype=torch.int64),
            pred_masks=torch.from_numpy(masks),
        )
        best = boxes[:1] if kept else torch.zeros(1, 4)
        return Prediction(found, Categories(["square"], [False]), (0.9 if kept else 0.0,), best)


def test_windows_cover_the_image():
    found = windows(100, 250, 100, 0.2)
    assert found == [Window(0, 0, 100, 100), Window(80, 0, 180, 100), Window(150, 0, 250, 100)]
    assert windows(50, 60, 100, 0.2) == [Window(0, 0, 60, 50)]
    for side, overlap in [(0, 0.2), (10, 1.0), (10, -0.1)]:
        with pytest.raises(ValueError, match="expected 1 and"):
            windows(9, 9, side, overlap)


def test_each_object_is_found_once_and_whole():
    image = np.zeros((200, 300, 3), np.uint8)
    squares = [(10, 10, 30), (85, 85, 24), (140, 20, 20), (250, 150, 50), (0, 150, 40)]
    for x, y, side in squares:
        image[y : y + side, x : x + side] = 255
    found = predict_in_tiles(StandIn(), image, None, 0.25, side=100, overlap=0.3)
    boxes = sorted(found.instances.pred_boxes.tensor.int().tolist())
    assert boxes == sorted([x, y, x + side, y + side] for x, y, side in squares)
    assert found.best_scores == (0.9,)
    x, y, right, bottom = found.best_boxes[0].int().tolist()  # in the whole image
    assert (image[y:bottom, x:right] == 255).all() and right - x >= LEAST
    for box, mask in zip(
        found.instances.pred_boxes.tensor.int().tolist(), found.instances.pred_masks, strict=True
    ):
        assert mask.shape == (200, 300) and int(mask.sum()) == (box[2] - box[0]) ** 2
        assert mask[box[1] : box[3], box[0] : box[2]].all()


def test_a_small_image_is_looked_at_once():
    image = np.full((8, 8, 3), 255, np.uint8)
    found = predict_in_tiles(StandIn(), image, None, 0.25, side=100)
    assert len(found) == 1 and found.instances.image_size == (8, 8)
