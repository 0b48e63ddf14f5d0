import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model

from ovd_d2.clip import CLIPTeacher
from ovd_d2.modeling import TimmBackbone
from tests.tiny import tiny_config
from tools.convert_clip_backbone import PREFIX


def test_stages_are_named_by_stride():
    backbone = TimmBackbone(architecture="test_resnet", out_features=["res3", "res5"])
    maps = backbone(torch.zeros(2, 3, 64, 96))
    assert {name: tuple(m.shape[2:]) for name, m in maps.items()} == {
        "res3": (8, 12),
        "res5": (2, 3),
    }
    shapes = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {
        "res3": (maps["res3"].shape[1], 8),
        "res5": (maps["res5"].shape[1], 32),
    }


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="res7"):
        TimmBackbone(architecture="test_resnet", out_features=["res7"])


def test_fpn_has_the_levels_of_the_heads():
    backbone = build_backbone(tiny_config())
    assert set(backbone.output_shape()) == {"p2", "p3", "p4", "p5", "p6"}


def test_the_teachers_tower_fits_name_by_name(tmp_path):
    teacher = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")
    state = {PREFIX + name: value for name, value in teacher.timm_trunk_state().items()}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    model = build_model(tiny_config())
    DetectionCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    loaded = model.state_dict()
    tower = [name for name in loaded if name.startswith(PREFIX)]
    assert sorted(tower) == sorted(state)
    assert all(torch.equal(loaded[name], state[name]) for name in tower)
