"""Embeddings of proposals out of one pass: against a straightforward computation, and its edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import roi_align

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.crops import CropRecipe, embed_proposals
from ovd_d2.clip.dense import DenseRecipe, DenseViT
from ovd_d2.clip.pipeline import ImageTask, embed_images
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from tests.tiny_vits import DIM, EVA, FAMILIES, NATIVE, PATCH, tiny_teacher

BOXES = torch.tensor([[3.0, 4, 30, 40], [10.5, 0, 53, 37], [0, 0, 53, 71], [20, 50, 21, 52]])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough for its map to differ from place to place."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def by_hand(
    image: np.ndarray, boxes: torch.Tensor, teacher: CLIPTeacher, size: int, square: bool
) -> torch.Tensor:
    """Pillow, a canvas of black pixels, the ViT, RoIAlign in cells: nothing of the recipe's."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    tall, wide = round(height * scale), round(width * scale)
    rows, columns = (size, size) if square else (tall, wide)
    canvas = Image.new("RGB", (math.ceil(columns / PATCH) * PATCH, math.ceil(rows / PATCH) * PATCH))
    canvas.paste(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(np.array(canvas)).float() / 255
    pixels = (pixels - torch.tensor(teacher.mean)) / torch.tensor(teacher.std)
    dense = DenseViT(teacher.visual)(pixels.permute(2, 0, 1)[None])
    cells = boxes * torch.tensor([wide / width, tall / height] * 2) / PATCH
    return F.normalize(roi_align(dense, [cells], 1, aligned=True).flatten(1), dim=1)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [48, 100])  # smaller and larger than the image
@pytest.mark.parametrize("family", FAMILIES)
def test_as_a_straightforward_computation(family: str, size: int, square: bool) -> None:
    teacher, image = tiny_teacher(family), noise(71, 53)
    found = embed_proposals(image, BOXES, teacher, DenseRecipe(size, square))
    expected = by_hand(image, BOXES, teacher, size, square)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # pixels may differ by one
    assert (expected - expected.mean(dim=0)).norm(dim=1).min() > 0.02  # the boxes differ


def test_windows_of_attention_reach_the_network() -> None:
    teacher, image = tiny_teacher(NATIVE), noise(64, 64)
    plain, whole, windowed = (
        embed_proposals(image, BOXES, teacher, DenseRecipe(64, window=window, global_blocks=blocks))
        for window, blocks in ((0, ()), (8, ()), (2, (0,)))
    )
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=0)
    assert (windowed - plain).abs().max() > 1e-3


def test_each_box_keeps_its_place() -> None:
    teacher, image, order = tiny_teacher(EVA), noise(71, 53), [2, 0, 3, 1]
    straight = embed_proposals(image, BOXES, teacher, DenseRecipe(64))
    turned = embed_proposals(image, BOXES[order], teacher, DenseRecipe(64))
    assert torch.equal(turned, straight[order])
    alone = embed_proposals(image, BOXES[1:2], teacher, DenseRecipe(64), batch_size=1)
    assert torch.equal(alone, straight[1:2])


def test_no_boxes() -> None:
    found = embed_proposals(noise(20, 30), torch.zeros(0, 4), tiny_teacher(NATIVE), DenseRecipe(32))
    assert found.shape == (0, DIM)


@pytest.mark.parametrize("shape", [(1, 1), (3, 300), (301, 2), (37, 53), (8, 8)])
@pytest.mark.parametrize("square", [False, True])
def test_any_size_of_image(shape: tuple[int, int], square: bool) -> None:
    height, width = shape
    boxes = torch.tensor([[0.0, 0, width, height], [width - 0.5, height - 0.5, width, height]])
    for family in FAMILIES:
        recipe = DenseRecipe(60, square)
        found = embed_proposals(noise(height, width), boxes, tiny_teacher(family), recipe)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_boxes_without_area_and_outside_are_one_pixel_as_the_crops_are() -> None:
    boxes = torch.tensor([[5.0, 6, 5, 6], [-9, -9, -3, -3], [90, 10, 99, 12], [4, 4, 2, 9]])
    found = DenseRecipe().windows(boxes, 20, 30)
    assert found.tolist() == [[5, 6, 6, 7], [0, 0, 1, 1], [29, 10, 30, 12], [4, 4, 5, 9]]
    crops = CropRecipe((1.0,)).windows(boxes[:3], 20, 30)
    assert found[:3].tolist() == crops.tolist()
    rows = embed_proposals(noise(20, 30), boxes, tiny_teacher(NATIVE), DenseRecipe(64))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    with pytest.raises(ValueError, match="boxes hold NaN"):
        DenseRecipe().windows(torch.tensor([[0.0, 0, float("nan"), 1]]), 20, 30)


def test_fractions_of_pixels_stay() -> None:
    boxes = torch.tensor([[1.25, 2.5, 7.75, 9.5]])
    assert DenseRecipe().windows(boxes, 20, 30).tolist() == boxes.tolist()


def test_padding_of_whole_patches_alone_is_less_work_and_not_the_same() -> None:
    teacher, image = tiny_teacher(NATIVE), noise(32, 64)  # nothing to pad at 64
    boxes = torch.tensor([[3.0, 4, 30, 30]])
    tight, square = (
        embed_proposals(image, boxes, teacher, DenseRecipe(64, square)) for square in (False, True)
    )
    assert (tight - square).abs().max() > 1e-3
    torch.testing.assert_close(tight, by_hand(image, boxes, teacher, 64, False), atol=2e-3, rtol=0)


SIZES = {4: (40, 30), 1: (64, 64), 7: (20, 50), 2: (33, 31), 5: (50, 20)}
COUNTS = {4: 3, 1: 0, 7: 300, 2: 1, 5: 2}


def task(image_id: int) -> ImageTask:
    height, width = SIZES[image_id]
    generator = torch.Generator().manual_seed(image_id)
    corners = torch.rand(COUNTS[image_id], 2, 2, generator=generator).sort(dim=1).values
    boxes = (corners * torch.tensor([width, height])).flatten(1)
    return ImageTask(image_id, {"boxes": boxes}, lambda: noise(height, width, image_id))


@pytest.mark.parametrize(("square", "batch_size"), [(False, None), (True, 1), (True, 2), (True, 9)])
def test_every_image_gets_the_embeddings_of_its_own_boxes(
    square: bool, batch_size: int | None
) -> None:
    teacher, recipe = tiny_teacher(EVA), DenseRecipe(48, square)
    written: dict[int, Any] = {}
    tasks = [task(image_id) for image_id in SIZES]
    order = list(embed_images(tasks, teacher, written.__setitem__, recipe, batch_size=batch_size))
    assert order == list(SIZES) == list(written)
    for one in tasks:
        boxes = one.record["boxes"]
        assert torch.equal(written[one.image_id]["boxes"], boxes)
        alone = embed_proposals(one.load(), boxes, teacher, recipe)
        found = written[one.image_id]["embeddings"]
        torch.testing.assert_close(found, alone, atol=1e-6 if batch_size else 0, rtol=0)


def test_a_pass_has_always_as_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = DenseViT.dense_features

    def counted(network: DenseViT, images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return forward(network, images)

    monkeypatch.setattr(DenseViT, "dense_features", counted)
    tasks = [task(image_id) for image_id in SIZES]
    recipe, teacher = DenseRecipe(32, square=True), tiny_teacher(NATIVE)
    list(embed_images(tasks, teacher, lambda *_: None, recipe, batch_size=3))
    assert passes == [3, 3]  # of four images with boxes and two black ones
    passes.clear()
    list(embed_images(tasks, teacher, lambda *_: None, DenseRecipe(32)))
    assert passes == [1, 1, 1, 1]


def test_images_of_different_shapes_share_no_pass() -> None:
    with pytest.raises(ValueError, match="batch_size is 2 images, expected 1: .*make them square"):
        DenseRecipe().per_pass(2)
    assert DenseRecipe(square=True).per_pass(2) == 2
    assert DenseRecipe().per_pass(None) == 1
    with pytest.raises(ValueError, match="batch_size is 0"):
        DenseRecipe().per_pass(0)


def test_gradients_are_not_kept() -> None:
    teacher = tiny_teacher(NATIVE)
    teacher.visual.requires_grad_(True)
    found = embed_proposals(noise(40, 40), BOXES[:1], teacher, DenseRecipe(32))
    assert not found.requires_grad


def test_a_network_without_dense_features_and_a_block_that_is_not_there() -> None:
    resnet = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)
    (problem,) = DenseRecipe().problems(resnet)
    assert problem.startswith(f"{ARCHITECTURE} cannot embed proposals densely: ")
    assert "a ViT with a CLS token" in problem
    assert DenseRecipe().problems(tiny_teacher(EVA)) == []
    (problem,) = DenseRecipe(window=2, global_blocks=(1, 7)).problems(tiny_teacher(EVA))
    assert "global attention in blocks [7]" in problem
    assert CropRecipe().problems(resnet) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"window": -1}, "window is -1"),
        ({"global_blocks": (1,)}, "without a window"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseRecipe(**options)


def test_what_a_manifest_says() -> None:
    assert DenseRecipe(896, window=4, global_blocks=[2, 5]).describe() == {  # type: ignore[arg-type]
        "teacher": "dense",
        "size": 896,
        "padding": "whole-patches",
        "window": 4,
        "global_blocks": [2, 5],
        "pooling": "unit-map-roi-align-1x1",
        "corners": "clamp-one-pixel",
        "resampling": "antialias-uint8",
        "precision": "float32",
    }
    assert DenseRecipe(square=True).describe()["padding"] == "square"
    assert DenseRecipe.on(torch.device("cuda")).describe()["precision"] == "bfloat16-autocast"
    assert DenseRecipe.on(torch.device("cpu"), size=64) == DenseRecipe(64)
    with pytest.raises(ValueError, match="amp is for CUDA"):
        DenseRecipe.on(torch.device("cpu"), amp=True)
