"""EVA-CLIP's own checkpoints, in all the wrappings in which they are handed out."""

import pytest
import torch

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.loading import load_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.errors import SetupError
from tests.tiny_vits import EVA, eva_names, folder_of_architecture, random_images, tiny_clip

WRAPPINGS = {
    "flat": lambda state: state,
    "clipself": lambda state: {"epoch": 6, "name": "x", "state_dict": state, "optimizer": {}},
    "eva": lambda state: {"module": state},
    "model": lambda state: {"model": state},
    "prefixed": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "tables": lambda state: {
        **state,
        "visual.rope.freqs_cos": torch.ones(16, 8),
        "visual.blocks.0.attn.rope.freqs_sin": torch.ones(16, 8),
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder_of_architecture(tmp_path_factory.mktemp("architectures"), EVA)
    return tiny_clip(EVA)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_an_official_checkpoint_loads_whole(model, tmp_path, wrapping):
    path = tmp_path / "official.pt"
    torch.save(WRAPPINGS[wrapping](eva_names(model.state_dict())), path)
    teacher = load_teacher(EVA, str(path))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_half_precision_is_read_as_float32(model, tmp_path):
    path = tmp_path / "half.pt"
    torch.save({k: v.half() for k, v in eva_names(model.state_dict()).items()}, path)
    teacher = load_teacher(EVA, str(path))
    assert {value.dtype for value in teacher.state_dict().values()} == {torch.float32}
    expected = DenseViT(model.visual)(random_images(1, 3, 32, 32))
    found = DenseViT(teacher.visual)(random_images(1, 3, 32, 32))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_open_clips_own_names_load_as_ever(model, tmp_path):
    path = tmp_path / "open_clip.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    teacher = CLIPTeacher.from_open_clip(EVA, str(path))
    key = "visual.trunk.blocks.1.attn.q_proj.bias"
    assert torch.equal(teacher.state_dict()[key], model.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.blocks.1.mlp.w2.bias"), "fc1_x.bias: expected .*found nothing"),
        (lambda s: s.update({"visual.extra": torch.ones(1)}), "extra: expected nothing"),
        (lambda s: s.update({"text.extra": torch.ones(1)}), "text.extra: expected nothing"),
        (
            lambda s: s.update({"visual.pos_embed": torch.ones(1, 26, 32)}),
            r"pos_embed: expected \(1, 17, 32\), found \(1, 26, 32\)",
        ),
    ],
)
def test_what_does_not_fit_is_listed(model, tmp_path, change, message):
    state = eva_names(dict(model.state_dict()))
    change(state)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(SetupError, match=message):
        load_teacher(EVA, str(tmp_path / "other.pt"))
