"""What is said of a resize against what Detectron2 does."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from ovd_d2 import add_ovd_config
from ovd_d2.data.augmentation import (
    RESIZE_TRANSFORMS,
    Resize,
    ResizeBy,
    TensorFlowResizeTransform,
    build_augmentations,
    resized,
    smallest_of,
    smallest_resize,
    truncated_size,
)
from ovd_d2.engine.run import load_config


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64, 32, 48), 100
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 40, 60
    cfg.INPUT.LSJ.SIZE, cfg.INPUT.LSJ.MIN_SCALE = 128, 0.1
    return cfg


def test_the_strongest_of_a_config(cfg):
    assert smallest_resize(cfg, is_train=False) == Resize(40, 60)
    cfg.INPUT.LSJ.ENABLED = False
    assert smallest_resize(cfg, is_train=True) == Resize(32, 100)
    cfg.INPUT.LSJ.ENABLED = True
    assert smallest_resize(cfg, is_train=True) == Resize(12, 12)
    assert smallest_resize(cfg, is_train=False) == Resize(40, 60)
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert smallest_resize(cfg, is_train=False) is None


@pytest.mark.parametrize("shape", [(200, 300), (300, 10), (10, 1000), (1, 1)])
def test_the_size_is_detectron2s(cfg, shape):
    augmented = T.AugInput(np.zeros((*shape, 3), np.uint8))
    T.AugmentationList(build_augmentations(cfg, is_train=False))(augmented)
    assert augmented.image.shape[:2] == resized(*shape, smallest_resize(cfg, is_train=False))


def test_no_pixel_is_left(cfg):
    assert resized(4, 1000, smallest_resize(cfg, is_train=False)) == (0, 60)
    augmented = T.AugInput(np.zeros((4, 1000, 3), np.uint8))
    with pytest.raises(ValueError, match="must be > 0"):
        T.AugmentationList(build_augmentations(cfg, is_train=False))(augmented)


def test_tensorflow_resizes_without_half_pixels_and_antialiasing():
    image = np.arange(12, dtype=np.uint8).reshape(2, 6)
    larger = TensorFlowResizeTransform(2, 6, 4, 12).apply_image(image)
    assert larger.dtype == np.float32  # not rounded
    assert larger[0, :5].tolist() == [0, 0.5, 1, 1.5, 2]
    assert larger[:, 0].tolist() == [0, 3, 6, 6]  # the last row again below it
    smaller = TensorFlowResizeTransform(2, 6, 1, 3).apply_image(image)
    assert smaller.tolist() == [[0, 2, 4]]  # every second pixel, nothing averaged
    labels = TensorFlowResizeTransform(2, 6, 4, 12).apply_segmentation(image)
    assert labels.dtype == np.uint8 and set(labels.flat) <= set(image.flat)


def test_opencv_averages_nothing_and_pillows_bicubic_does():
    stripes = np.tile(np.array([0, 200], np.uint8), (4, 32))  # (4, 64)
    (opencv, bicubic) = (
        RESIZE_TRANSFORMS[name](4, 64, 1, 4).apply_image(stripes[..., None].repeat(3, axis=2))
        for name in ("opencv", "pillow_bicubic")
    )
    assert opencv.shape == bicubic.shape == (1, 4, 3)
    assert opencv[0, :, 0].tolist() == [100] * 4  # half-way between two neighbours
    assert np.abs(bicubic.astype(int) - 100).max() < 20
    thin = np.zeros((4, 64, 3), np.uint8)
    thin[:, 4] = 255  # not beside a place where OpenCV looks: 7.5, 23.5, ...
    assert RESIZE_TRANSFORMS["opencv"](4, 64, 1, 4).apply_image(thin).max() == 0
    assert RESIZE_TRANSFORMS["pillow_bicubic"](4, 64, 1, 4).apply_image(thin).max() > 0


def test_the_full_recipe_pads_in_the_model_and_flips_first():
    cfg = load_config("configs/vild_r50.yaml")
    augmentations = build_augmentations(cfg, is_train=True)
    assert [type(one) for one in augmentations] == [T.RandomFlip, ResizeBy, T.FixedSizeCrop]
    given = T.AugInput(np.full((300, 400, 3), 7, np.uint8))
    T.AugmentationList(augmentations)(given)
    assert given.image.dtype == np.float32 and set(given.image.flat) == {7}
    assert max(given.image.shape) <= 1024
    assert smallest_of(augmentations) == smallest_resize(cfg, is_train=True)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((480, 640), (800, 1066)),  # Detectron2: 1067
        ((640, 480), (1066, 800)),
        ((333, 500), (800, 1201)),
        ((20, 3000), (9, 1350)),  # the limit rounds the shortest edge, and is exceeded
        ((800, 1333), (800, 1333)),
        ((1, 1), (800, 800)),
    ],
)
def test_sizes_of_maskrcnn_benchmark(cfg, shape, size):
    cfg.INPUT.SIZE_RULE = "truncated"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 800, 1333
    (augmentation,) = build_augmentations(cfg, is_train=False)
    found = augmentation.get_transform(np.zeros((*shape, 3), np.uint8))
    assert (found.new_h, found.new_w) == size == truncated_size(*shape, Resize(800, 1333))
    cfg.INPUT.RESIZE = "opencv"
    (augmentation,) = build_augmentations(cfg, is_train=False)
    found = augmentation.get_transform(np.zeros((*shape, 3), np.uint8))
    assert type(found) is RESIZE_TRANSFORMS["opencv"] and (found.new_h, found.new_w) == size


@pytest.mark.parametrize("sampling", ["choice", "range"])
def test_the_truncating_rule_draws_as_detectron2(cfg, sampling):
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = sampling
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 64) if sampling == "range" else (32, 48, 64)
    cfg.INPUT.MAX_SIZE_TRAIN = 1000
    square = np.zeros((100, 100, 3), np.uint8)
    sides = []
    for rule in ("rounded", "truncated"):
        cfg.INPUT.SIZE_RULE = rule
        np.random.seed(0)
        resize = build_augmentations(cfg, is_train=True)[0]
        sides.append([resize.get_transform(square).new_h for _ in range(20)])
    assert sides[0] == sides[1] and len(set(sides[0])) > 2
    cfg.INPUT.MIN_SIZE_TEST = 0
    (resize,) = build_augmentations(cfg, is_train=False)
    assert type(resize.get_transform(square)) is T.NoOpTransform
