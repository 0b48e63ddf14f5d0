"""The configs of F-ViT: they build, name what they need, and their keys are looked at."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.data.ov_coco import BASE_CLASSES, NOVEL_CLASSES
from ovd_d2.engine.checks import config_problems
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config
from ovd_d2.projects.clipself.fvit.checks import problems
from ovd_d2.systems import SetupContext, system_of

CONFIGS = Path("projects/CLIPSelf/configs")
NAMES = sorted(path.stem for path in CONFIGS.glob("*fvit*.yaml") if path.stem != "base_fvit")
COCO_B16 = "ov_coco_fvit_b16"


def load(name, *options):
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *options])


@pytest.mark.parametrize("name", NAMES)
def test_configs_build(name):
    cfg = load(name, "SOLVER.AMP.ENABLED", False)
    assert list(config_problems(cfg, training=True)) == []
    assert idle_key_notices(cfg) == []
    assert Path(cfg.OUTPUT_DIR).name == name
    cfg.MODEL.WEIGHTS, cfg.MODEL.OVD.VOCABULARY, cfg.MODEL.DEVICE = "x.pth", "", "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trained == sum(
        one.numel() for key, one in model.named_parameters() if not key.startswith("backbone.vit.")
    )
    if name == COCO_B16:
        assert round(trained / 1e6, 1) == 21.0  # the public code's


def test_there_are_configs_of_every_kind():
    kinds = {f"ov_{data}_fvit_{vit}" for data in ("coco", "lvis") for vit in ("b16", "l14")}
    kinds |= {f"{name}_original" for name in kinds}
    assert kinds | {"transfer_coco_fvit_l14", "transfer_objects365_fvit_l14"} <= set(NAMES)


def test_ov_cocos_novel_categories_are_where_the_public_code_has_them():
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    names = [one["name"] for one in COCO_CATEGORIES if one["isthing"]]
    kept = [name for name in names if name in {*BASE_CLASSES, *NOVEL_CLASSES}]
    novel = [kept.index(name) for name in NOVEL_CLASSES]
    assert novel == [4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.FVIT.LOGIT_SCALE", 0.0], "LOGIT_SCALE: 0.0, expected a factor above 0"),
        (["MODEL.FVIT.BACKGROUND_WEIGHT", -1.0], "BACKGROUND_WEIGHT: -1.0, expected 0 or more"),
        (["MODEL.FVIT.RPN_LEAST_IOU", 30.0], "RPN_LEAST_IOU: 30.0, expected an IoU"),
        (["MODEL.FVIT.TAPS", (1, 2)], "TAPS: (1, 2), expected four blocks"),
        (["MODEL.FVIT.SQUARE_PAD", 320], "SQUARE_PAD is 320, but images have up to 640 pixels"),
        (["MODEL.OVD.EMBEDDING_DIM", 64], "EMBEDDING_DIM is 64, but the embeddings of"),
        (["MODEL.OVD.TEACHER.ARCHITECTURE", "ViT-Z"], "open_clip knows no 'ViT-Z'"),
        (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"], "has no dense map"),
    ],
)
def test_values_that_cannot_be_meant(options, message):
    found = list(config_problems(load(COCO_B16, *options), training=False))
    assert any(message in one for one in found)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["MODEL.OVD.TEMPERATURE", 0.02], ["MODEL.OVD.TEMPERATURE"]),
        (
            ["MODEL.FVIT.ENSEMBLE", False],
            ["MODEL.FVIT.IMAGE_LOGIT_SCALE", "MODEL.OVD.BASE_WEIGHT", "MODEL.OVD.NOVEL_WEIGHT"],
        ),
        (
            ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.FVIT.RPN_LEAST_IOU", 0.2],
            ["MODEL.FVIT.RPN_LEAST_IOU"],
        ),
        (["MODEL.WEIGHTS", "x.pth"], ["MODEL.FVIT.VIT_WEIGHTS"]),
    ],
)
def test_keys_that_nothing_reads(options, keys):
    found = idle_key_notices(load("ov_lvis_fvit_b16", *options))
    assert [one.split(" ", 1)[0] for one in found] == keys


def test_keys_of_the_backbone_are_read_under_other_heads():
    found = idle_key_notices(load("ov_coco_vild_fvit_b16", "MODEL.FVIT.BACKGROUND_WEIGHT", 0.5))
    assert [one.split(" ", 1)[0] for one in found] == ["MODEL.FVIT.BACKGROUND_WEIGHT"]
    cfg = load("ov_coco_vild_fvit_b16", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    found = " ".join(idle_key_notices(cfg))
    assert "MODEL.FVIT.VIT_WEIGHTS" in found and "MODEL.FVIT.SQUARE_PAD" in found


def test_the_vits_file_is_looked_for(tmp_path):
    cfg = load(COCO_B16, "MODEL.FVIT.VIT_WEIGHTS", str(tmp_path / "none.pt"))
    context = SetupContext(training=True, embedding_dim=512)
    assert "VIT_WEIGHTS: no file at" in next(iter(problems(cfg, context)))
    own = load(COCO_B16, "MODEL.FVIT.VIT_WEIGHTS", "", "MODEL.OVD.TEACHER.PRETRAINED", "none.pt")
    assert "TEACHER.PRETRAINED: no file at none.pt" in next(iter(problems(own, context)))
    (tmp_path / "none.pt").touch()
    assert list(problems(cfg, context)) == []
    cfg.MODEL.FVIT.VIT_WEIGHTS = ""
    assert list(problems(cfg, context)) == []
    assert system_of(cfg).name == "F-ViT"
