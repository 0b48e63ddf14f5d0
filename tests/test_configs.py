"""Every shipped config builds a model, and no key of ours is dead."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from ovd_d2 import add_ovd_config
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS)
def test_config_builds(path):
    cfg = load_config(str(ROOT / path), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 1e6


def test_there_are_configs():
    assert "configs/vild_r50.yaml" in CONFIGS


@pytest.mark.parametrize("name", ["vild_text", "vild_image", "vild", "vild_ensemble"])
def test_variant_configs_say_their_variant(name):
    for path in (f"configs/{name}_r50.yaml", f"configs/pictograms/{name}.yaml"):
        cfg = load_config(str(ROOT / path))
        variant = cfg.MODEL.OVD.VARIANT
        assert variant == name


def test_the_full_recipe_is_the_published_one():
    cfg = load_config(str(ROOT / "configs/vild_r50.yaml"))
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.BASE_LR) == (256, 180000, 0.32)
    first_rate = solver.BASE_LR * solver.WARMUP_FACTOR
    assert first_rate == pytest.approx(0.0032)
    assert (cfg.INPUT.LSJ.MIN_SCALE, cfg.INPUT.LSJ.MAX_SCALE, cfg.INPUT.LSJ.SIZE) == (
        0.1,
        2.0,
        1024,
    )
    assert (cfg.MODEL.OVD.TEMPERATURE, cfg.MODEL.OVD.DISTILLATION.WEIGHT) == (0.01, 0.5)
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.NUM_CONV, head.CONV_DIM, head.NUM_FC, head.FC_DIM) == (4, 256, 2, 1024)


def _keys(node: CfgNode, prefix: str) -> list[str]:
    keys = []
    for key, value in node.items():
        name = f"{prefix}.{key}"
        keys += _keys(value, name) if isinstance(value, CfgNode) else [name]
    return keys


def test_no_key_is_dead():
    plain, ours = get_cfg(), get_cfg()
    add_ovd_config(ours)
    added = sorted(set(_keys(ours, "cfg")) - set(_keys(plain, "cfg")))
    assert len(added) > 10
    source = "\n".join(
        path.read_text() for path in (ROOT / "ovd_d2").rglob("*.py") if path.name != "config.py"
    )
    dead = [key for key in added if not re.search(rf"\b{key.rsplit('.', 1)[1]}\b", source)]
    assert dead == []


def test_unknown_file_and_unknown_key_are_named():
    with pytest.raises(SetupError, match=r"configs/nothing\.yaml"):
        load_config("configs/nothing.yaml")
    with pytest.raises(SetupError, match=r"MODEL\.OVD\.VARIENT"):
        load_config(str(ROOT / "configs/vild_r50.yaml"), ["MODEL.OVD.VARIENT", "vild"])
