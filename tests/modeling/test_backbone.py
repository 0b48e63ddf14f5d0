import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

from ovd_d2.clip import CLIPTeacher
from ovd_d2.modeling import TimmBackbone
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary, vit_config
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


def test_vit_maps_are_named_by_stride_for_any_image_size():
    backbone = build_backbone(vit_config())
    maps = backbone(torch.zeros(2, 3, 96, 64))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "p2": (2, 16, 24, 16),
        "p3": (2, 16, 12, 8),
        "p4": (2, 16, 6, 4),
        "p5": (2, 16, 3, 2),
        "p6": (2, 16, 2, 1),
    }


@pytest.mark.parametrize("rel_pos", [True, False])
def test_vit_windows_and_relative_positions_are_as_configured(rel_pos):
    blocks = build_backbone(vit_config(USE_REL_POS=rel_pos)).net.blocks
    assert [block.window_size for block in blocks] == [2, 0, 2]
    assert [hasattr(block.attn, "rel_pos_h") for block in blocks] == [rel_pos] * 3
    if rel_pos:  # tables of 2 n - 1 offsets: n patches in a window, or in the image
        assert [len(block.attn.rel_pos_h) for block in blocks] == [3, 7, 3]


def test_a_vit_block_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"GLOBAL_ATTENTION_BLOCKS names \[3\]"):
        build_backbone(vit_config(GLOBAL_ATTENTION_BLOCKS=(1, 3)))


def test_every_parameter_of_a_vit_detector_gets_a_gradient():
    model = build_model(vit_config())
    model.set_vocabulary(tiny_vocabulary())
    with EventStorage():
        sum(model([tiny_input(), tiny_input(0, 0)]).values()).backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
