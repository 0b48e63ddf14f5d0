"""Crop windows by hand-computed integers; embeddings by images whose crops are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
import torch

from ovd_d2.clip.crops import (
    VILD_RECIPE,
    CropRecipe,
    embed_proposals,
    image_on_device,
    scaled_boxes,
)
from ovd_d2.clip.device_crops import resize_crops
from ovd_d2.clip.preprocess import Preprocessing
from ovd_d2.clip.teacher import CLIPTeacher


def windows(box: list[float], scale: float, height: int = 100, width: int = 200) -> list[int]:
    return scaled_boxes(torch.tensor([box]), scale, height, width)[0].tolist()


@pytest.mark.parametrize(
    ("box", "scale", "expected"),
    [
        ([10, 20, 30, 60], 1.0, [10, 20, 30, 60]),
        ([10, 20, 30, 60], 1.5, [5, 10, 35, 70]),
        ([10.2, 20.7, 29.5, 60.0], 1.0, [10, 20, 30, 60]),  # floor and ceil: outwards
        ([10, 20, 15, 27], 1.5, [8, 18, 17, 29]),  # 8.75, 18.25, 16.25, 28.75
        ([-5, -5, 10, 10], 1.0, [0, 0, 10, 10]),
        ([180, 80, 200, 100], 1.5, [175, 75, 200, 100]),  # clamped at the far corner
        ([50, 50, 50, 50], 1.0, [50, 50, 51, 51]),  # no area: one pixel
        ([200, 100, 200, 100], 1.5, [199, 99, 200, 100]),
        ([300, 300, 310, 310], 1.0, [199, 99, 200, 100]),  # outside
        ([-20, -20, -10, -10], 1.0, [0, 0, 1, 1]),
    ],
)
def test_scaled_boxes(box: list[float], scale: float, expected: list[int]) -> None:
    assert windows(box, scale) == expected


def test_scaled_boxes_types_and_empty() -> None:
    result = scaled_boxes(torch.zeros(0, 4), 1.5, 10, 10)
    assert result.shape == (0, 4)
    assert result.dtype == torch.int64


def test_scaled_boxes_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        windows([0, 0, float("nan"), 4], 1.0)


@dataclass
class MeanColourTeacher:
    """Embeds a crop as its mean colour, normalised, so that embeddings are known beforehand."""

    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    )
    embedding_dim: int = 3
    device: torch.device = torch.device("cpu")
    seen: list[int] = field(default_factory=list)

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(batch.shape[0])
        return torch.nn.functional.normalize(batch.mean(dim=(2, 3)), dim=1)


def teacher(**changes: object) -> CLIPTeacher:
    preprocessing = Preprocessing((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), **changes)  # type: ignore[arg-type]
    return cast(CLIPTeacher, MeanColourTeacher(preprocessing))


def crop_batch(
    image: np.ndarray,
    boxes: torch.Tensor,
    scale: float,
    teacher: CLIPTeacher,
    resize: str = "open_clip",
) -> torch.Tensor:
    """The crops themselves, (K, 3, 8, 8)."""
    sources = [
        (image_on_device(image, teacher.device), scaled_boxes(boxes, scale, *image.shape[:2]))
    ]
    return resize_crops(sources, teacher.preprocessing, squash=resize == "squash")


def framed_image() -> np.ndarray:
    """A red 20 x 20 square in a green image of 60 x 80."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 1] = 255
    image[20:40, 30:50] = (255, 0, 0)
    return image


BOX = torch.tensor([[30.0, 20.0, 50.0, 40.0]])


def test_tight_and_wide_crops_differ() -> None:
    tight = crop_batch(framed_image(), BOX, 1.0, teacher())
    wide = crop_batch(framed_image(), BOX, 1.5, teacher())
    assert tight.shape == wide.shape == (1, 3, 8, 8)
    assert tight[0, 0].min() == 1  # red only
    assert tight[0, 1].max() == 0
    assert wide[0, 1].max() == 1  # the green frame
    # 900 px of which 400 are red
    assert wide[0, 0].mean() == pytest.approx(400 / 900, abs=0.02)


def test_embedding_is_the_mean_of_both_crops() -> None:
    result = embed_proposals(framed_image(), BOX, teacher())
    wide = torch.tensor([400.0, 500.0, 0.0]) / (400**2 + 500**2) ** 0.5
    expected = torch.nn.functional.normalize(torch.tensor([1.0, 0.0, 0.0]) + wide, dim=0)
    torch.testing.assert_close(result[0], expected, atol=0.02, rtol=0)
    assert result.norm() == pytest.approx(1)


def test_embeddings_keep_the_order_whatever_the_batch_size() -> None:
    green = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    boxes = torch.cat([green, BOX, green, green, BOX])
    whole = embed_proposals(framed_image(), boxes, teacher())
    assert whole[:, 0].gt(0.5).tolist() == [False, True, False, False, True]
    stub = MeanColourTeacher()
    small = embed_proposals(framed_image(), boxes, cast(CLIPTeacher, stub), batch_size=4)
    torch.testing.assert_close(small, whole)
    assert stub.seen == [4, 4, 2]  # two boxes of two scales at a time


def test_no_proposals() -> None:
    assert embed_proposals(framed_image(), torch.zeros(0, 4), teacher()).shape == (0, 3)
    assert crop_batch(framed_image(), torch.zeros(0, 4), 1.0, teacher()).shape == (0, 3, 8, 8)


def test_long_box_loses_its_ends_unless_squashed() -> None:
    """A box of 60 x 20 whose middle third is red: open_clip's transform sees the middle alone."""
    box = torch.tensor([[10.0, 20.0, 70.0, 40.0]])
    faithful = crop_batch(framed_image(), box, 1.0, teacher())
    squashed = crop_batch(framed_image(), box, 1.0, teacher(), resize="squash")
    assert faithful[0, 0].mean() > 0.95
    assert squashed[0, 0].mean() == pytest.approx(1 / 3, abs=0.02)


def test_extreme_boxes_are_cheap_and_whole() -> None:
    image = np.full((1000, 1000, 3), 7, np.uint8)
    box = torch.tensor([[0.0, 500.0, 1000.0, 500.5]])
    assert crop_batch(image, box, 1.0, teacher()).unique().tolist() == pytest.approx([7 / 255])


def test_normalisation_and_interpolation_come_from_the_teacher() -> None:
    preprocessing = Preprocessing((4, 4), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), "bilinear", "squash")
    crop = crop_batch(framed_image(), BOX, 1.0, cast(CLIPTeacher, MeanColourTeacher(preprocessing)))
    assert crop[0].mean(dim=(1, 2)).tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_longest_mode_pads() -> None:
    box = torch.tensor([[30.0, 20.0, 50.0, 30.0]])  # 20 x 10 red
    crop = crop_batch(framed_image(), box, 1.0, teacher(resize_mode="longest"))
    assert crop[0, 0].mean() == pytest.approx(0.5, abs=0.05)


def test_refuses_other_images_and_modes() -> None:
    with pytest.raises(ValueError, match=r"got \(60, 80, 3\) float32"):
        crop_batch(framed_image().astype(np.float32), BOX, 1.0, teacher())
    with pytest.raises(ValueError, match="'stretch'; choices: open_clip, squash"):
        CropRecipe(resize="stretch")
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match="scales are .*expected positive"):
            CropRecipe(scales)


def test_bfloat16_is_for_cuda() -> None:
    assert CropRecipe.on(torch.device("cpu"), resize="squash") == CropRecipe(resize="squash")
    assert CropRecipe.on(torch.device("cuda:0")).amp
    assert not CropRecipe.on(torch.device("cuda:0"), amp=False).amp
    with pytest.raises(ValueError, match="amp is for CUDA devices, the teacher runs on cpu"):
        CropRecipe.on(torch.device("cpu"), amp=True)


def test_recipe_names_what_was_done() -> None:
    assert VILD_RECIPE.describe() == {
        "scales": [1.0, 1.5],
        "average": "mean-then-normalise",
        "corners": "floor-ceil-clamp",
        "resize": "open_clip",
        "resampling": "antialias-uint8",
        "precision": "float32",
    }
    assert CropRecipe((2,), "squash").describe()["resize"] == "squash"
    assert CropRecipe(amp=True).describe()["precision"] == "bfloat16-autocast"


def test_windows_of_a_box_stand_together() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 4, 4]])
    expected = [[10, 20, 30, 60], [5, 10, 35, 70], [0, 0, 4, 4], [0, 0, 5, 5]]
    assert VILD_RECIPE.windows(boxes, 100, 200).tolist() == expected
    rows = torch.tensor([[1.0, 0], [0, 1], [0, -1], [0, -1]])
    half = 0.5**0.5
    torch.testing.assert_close(VILD_RECIPE.combine(rows), torch.tensor([[half, half], [0.0, -1.0]]))
