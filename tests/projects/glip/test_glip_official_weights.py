"""Official checkpoints load whole: every key has its place, or is left out for a reason."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from convert_weights import main
from detectron2.modeling.backbone.swin import SwinTransformer
from torch.overrides import TorchFunctionMode

from ovd_d2.engine.checkpoint import SafeCheckpointer
from ovd_d2.engine.run import load_config
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.official_weights import (
    PREFIX,
    convert_swin,
    convert_weights,
    load_strictly,
)
from tests.tiny_glip import tiny_glip

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parents[3] / "projects" / "GLIP" / "configs"
VARIANTS = {"glip_t_a": "glip_a", "glip_t": "glip_t", "glip_l": "glip_l"}


class RealRanges(TorchFunctionMode):
    """Detectron2's Swin reads the numbers of a range, which the meta device has not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.linspace:
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


@contextmanager
def no_memory():
    with torch.device("meta"), RealRanges():
        yield


def meta_glip(config):
    cfg = load_config(
        str(CONFIGS / f"{config}.yaml"), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "official.pth"]
    )
    with no_memory():
        return GLIP(cfg)


def official(keys):
    shapes = json.loads((GOLDEN / f"keys_{keys}.json").read_text())
    return {f"{PREFIX}{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(("config", "keys"), VARIANTS.items())
def test_every_key_has_its_place(config, keys):
    weights = official(keys)
    converted = convert_weights(weights)
    assert len(converted.weights) + len(converted.left_out) == len(weights)
    assert {one.split(",")[0] for one in converted.left_out.values()} == {
        "a classifier of 80 fixed categories that the public code never uses",
        "anchors",
    }
    model = meta_glip(config)
    load_strictly(model, converted)  # all keys of the model, too, of these shapes
    assert set(model.state_dict()) == set(converted.weights)


def test_older_files_have_keys_more():
    weights = official("glip_t")
    extra = {
        "module.language_backbone.body.model.embeddings.position_ids": torch.arange(512)[None],
        "module.rpn.head.mlm_head.bias": torch.zeros(3),
        "module.rpn.head.resizer.fc.weight": torch.zeros(3),
    }
    found = convert_weights({**weights, **extra})
    assert set(extra) <= set(found.left_out)
    assert set(found.weights) == set(convert_weights(weights).weights)


def test_no_prefix_is_the_same():
    weights = official("glip_a")
    plain = {key.removeprefix(PREFIX): one for key, one in weights.items()}
    assert list(convert_weights(plain).weights) == list(convert_weights(weights).weights)


def test_nothing_is_passed_over_in_silence():
    weights = official("glip_t")
    with pytest.raises(ValueError, match="1 weights have no place here, first module.rpn.head.new"):
        convert_weights({**weights, "module.rpn.head.new": torch.zeros(1)})
    model = meta_glip("glip_t")
    lost = dict(weights)
    del lost["module.rpn.head.dyhead_tower.4.output.dense.bias"]
    with pytest.raises(ValueError, match=r"Missing key.*head\.tower\.1\.language\.reduce\.bias"):
        load_strictly(model, convert_weights(lost))
    with pytest.raises(ValueError, match="the weights are of another model"):
        load_strictly(model, convert_weights(official("glip_a")))


def test_the_tool_writes_the_weights(tmp_path, capsys):
    state = {key: torch.zeros(1) for key in official("glip_a")}
    torch.save({"model": state, "iteration": 7}, tmp_path / "glip.pth")
    main(["glip", str(tmp_path / "glip.pth"), str(tmp_path / "out")])
    converted = convert_weights(state)
    weights = torch.load(tmp_path / "out" / "model.pth", weights_only=True)["model"]
    assert weights.keys() == converted.weights.keys()
    source = json.loads((tmp_path / "out" / "source.json").read_text())
    assert source["left_out"] == converted.left_out and list(source["sha256"]) == ["glip.pth"]
    assert f"{len(weights)} tensors in" in capsys.readouterr().out
    torch.save({"iteration": 7}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match=r"other.pth .*no weights in it, its keys are"):
        main(["glip", str(tmp_path / "other.pth"), str(tmp_path / "out")])


def swin():
    torch.manual_seed(0)
    sizes = {"depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
    return SwinTransformer(embed_dim=8, out_indices=(1, 2, 3), **sizes).eval()


def test_a_swin_of_imagenet_becomes_the_backbone(tmp_path):
    source = swin()
    body = {k: v for k, v in source.state_dict().items() if not k.startswith("norm")}
    others = {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    others |= {"head.weight": torch.ones(9, 64), "layers.1.blocks.1.attn_mask": torch.zeros(4)}
    torch.save({"model": body | others}, tmp_path / "swin.pth")
    main(["swin", str(tmp_path / "swin.pth"), str(tmp_path / "out")])
    left_out = json.loads((tmp_path / "out" / "source.json").read_text())["left_out"]
    assert set(left_out) == set(others)
    model = tiny_glip(seed=1)
    SafeCheckpointer(model).load(str(tmp_path / "out" / "model.pth"))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = model.eval().backbone.bottom_up(image), source(image)
    for level, features in expected.items():  # norm1 to norm3 are new in both
        torch.testing.assert_close(found[level], features)


def test_another_backbone_is_no_swin():
    with pytest.raises(ValueError, match="1 of 1 weights have no place in a Swin, first conv1.wei"):
        convert_swin({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="0 of 0 weights"):
        convert_swin({})
