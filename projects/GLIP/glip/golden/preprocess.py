"""Sizes, pixels and boxes of the network's input beside the public code's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import ImageList

from ovd_d2.data.augmentation import Resize, build_augmentations, truncated_size
from ovd_d2.engine.run import load_config
from ovd_d2.golden import Found, GoldenFolder, Part, difference

SIZES = "preprocess.json"
TABLE = Resize(800, 1333)
CONFIG = Path(__file__).parents[2] / "configs" / "base_glip.yaml"


def _sizes(folder: GoldenFolder, file: str) -> Found:
    for (width, height), expected in folder.json(file)["size_table_wh_to_hw_for_800_1333"]:
        apart = np.abs(np.subtract(truncated_size(height, width, TABLE), expected)).max()
        yield f"{width} x {height}", float(apart), 0.0


def _image(folder: GoldenFolder, file: str) -> Found:
    """An image and its boxes."""
    golden, tensors = folder.json(SIZES), folder.tensors(file)
    shortest, longest = golden["resize_min_max_used_for_tensor"]
    sizes = ["INPUT.MIN_SIZE_TEST", str(shortest), "INPUT.MAX_SIZE_TEST", str(longest)]
    cfg = load_config(str(CONFIG), ["MODEL.DEVICE", "cpu", *sizes])
    rgb = tensors["rgb_uint8"].numpy()
    seen = T.AugInput(np.ascontiguousarray(rgb[:, :, ::-1]))  # INPUT.FORMAT BGR
    transforms = T.AugmentationList(build_augmentations(cfg, is_train=False))(seen)
    image = torch.from_numpy(seen.image.copy()).permute(2, 0, 1).float()
    mean, std = (torch.tensor(cfg.MODEL[f"PIXEL_{one}"])[:, None, None] for one in ("MEAN", "STD"))
    image = (image - mean) / std
    yield "resized_normalised", difference(image, tensors["resized_normalised"]), 1e-5
    padded = ImageList.from_tensors([image], golden["pad_to_multiple"]).tensor
    yield "padded", difference(padded, tensors["padded"]), 1e-5
    boxes = tensors["boxes_in"].numpy().astype(np.float64)
    ours = torch.from_numpy(transforms.apply_box(boxes))
    yield "boxes_out", difference(ours, tensors["boxes_out"]), 1e-4
    # The last pixel belongs to a box there; Detectron2's ends behind it.
    flipped = T.HFlipTransform(rgb.shape[1]).apply_box(boxes + [0, 0, 1, 1]) - [0, 0, 1, 1]
    ours, name = torch.from_numpy(flipped), "boxes_hflip_of_in"
    yield name, difference(ours, tensors[name]), 1e-4


PARTS = (
    Part("sizes of images", (SIZES,), _sizes),
    Part("image and boxes", ("preprocess.safetensors", SIZES), _image),
)
