"""F-ViT beside the public code's numbers (golden/README.md), through the official key names."""

import csv
import re
from pathlib import Path

import pytest
import torch
from check_golden import build
from convert_weights import main
from safetensors.torch import load_file
from torch.nn import functional as F

from ovd_d2.projects.clipself.fvit.official_weights import (
    LEFT_OUT,
    TEXT_EMBEDDINGS,
    convert_weights,
)
from ovd_d2.projects.clipself.golden import detector
from ovd_d2.vocabulary import Vocabulary
from tests.golden_folders import folder_of
from tests.tiny import random_units

FOLDER = Path(__file__).parent / "golden"


# What the comparisons start from; labels are compared with their boxes.
GIVEN = (
    r"(l14_)?rois|base_mask|gt_.*|train_proposals_.|labels.*|loss_labels|.*delta_targets|mask_t.*"
)


COCO, LVIS = detector.PARTS


@pytest.mark.parametrize(
    "part", [LVIS, pytest.param(COCO, marks=pytest.mark.slow)], ids=lambda part: part.name
)
def test_every_number_is_the_official_one(part, tmp_path):
    found = list(part.comparisons(folder_of(part, FOLDER, tmp_path)))
    assert [one for one in found if not one.ok] == []
    compared = {one.name.partition(",")[0] for one in found}
    given = load_file(FOLDER / part.files[0])
    assert {name for name in given if not re.fullmatch(GIVEN, name)} <= compared


def official_shapes(name):
    with (FOLDER / "keys" / f"{name}.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        row["name"]: () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))
        for row in rows
    }


def weights_of(model, part=""):
    computed = ("pixel_mean", "pixel_std", "vocabulary")
    return {
        key: tuple(one.shape)
        for key, one in model.state_dict().items()
        if key.startswith(part) and not key.endswith(computed) and "cell_anchors" not in key
    }


def on_meta(config):
    with torch.device("meta"):
        return build(
            f"projects/CLIPSelf/configs/{config}.yaml",
            ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", "x.pth", "MODEL.OVD.VOCABULARY", ""],
        )


def test_all_391_weights_of_an_official_checkpoint_have_their_place():
    shapes = official_shapes("fvit_coco_b16")
    assert len(shapes) == 391
    given = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    converted = convert_weights(given)
    expected = weights_of(on_meta("ov_coco_fvit_b16"))
    assert {key: tuple(one.shape) for key, one in converted.weights.items()} == expected
    assert len(converted.weights) + len(converted.left_out) + 1 == 391
    assert set(converted.left_out.values()) == set(LEFT_OUT.values())
    assert converted.text_embeddings.shape == (65, 512) and converted.background.shape == (512,)


def test_the_heads_of_the_lvis_model_have_their_place():
    shapes = official_shapes("fvit_lvis_b16_heads")
    given = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    converted = convert_weights(given)
    model = on_meta("ov_lvis_fvit_b16")
    expected = weights_of(model, "proposal_generator.") | weights_of(model, "roi_heads.")
    assert {key: tuple(one.shape) for key, one in converted.weights.items()} == expected


def test_what_no_rule_names_is_an_error():
    words = {TEXT_EMBEDDINGS: torch.eye(3)}
    with pytest.raises(ValueError, match="1 weights have no place here, first neck.extra"):
        convert_weights({**words, "neck.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="is it a checkpoint of F-ViT"):
        convert_weights({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="its ViT has 5 channels"):
        convert_weights({**words, "backbone.visual.cls_token": torch.zeros(1, 1, 5)})


def test_the_tool_writes_weights_and_vocabulary(tmp_path):
    state = {name: torch.ones(1) for name in official_shapes("fvit_lvis_b16_heads")}
    words = random_units(1204, dim=4)
    state[TEXT_EMBEDDINGS] = 3 * words.T
    torch.save({"meta": {}, "state_dict": state, "optimizer": {}}, tmp_path / "official.pth")
    main(["fvit", str(tmp_path / "official.pth"), str(tmp_path / "out")])
    weights = torch.load(tmp_path / "out/model.pth", weights_only=True)["model"]
    assert weights["roi_heads.box_predictor.classifier.scale"] == 1
    vocabulary = Vocabulary.load(tmp_path / "out/vocabulary.safetensors")
    assert len(vocabulary) == 1203 and vocabulary.novel.sum() == 337
    assert torch.allclose(vocabulary.background, F.normalize(words[-1], dim=0), atol=1e-6)
    state[TEXT_EMBEDDINGS] = torch.eye(7)
    torch.save(state, tmp_path / "official.pth")
    with pytest.raises(SystemExit, match="has 6 categories; released models have 65"):
        main(["fvit", str(tmp_path / "official.pth"), str(tmp_path / "out")])


def test_anchors_and_strides_of_l14():
    model = on_meta("ov_lvis_fvit_l14")
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert strides == {"p2": 3.5, "p3": 7, "p4": 14, "p5": 28, "p6": 56, "dense": 14}
    assert model.proposal_generator.anchor_generator.strides == [3.5, 7, 14, 28, 56]
    assert model.roi_heads.box_pooler.strides == (3.5, 7, 14, 28)
    assert model.roi_heads.mask_pooler.strides == (3.5, 7, 14, 28)
    assert model.roi_heads.image_head.stride == 14
