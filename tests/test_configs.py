"""Every shipped config builds a model, and no key of ours is dead."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
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


LAZY_CONFIGS = {
    "configs/new_baselines/vild_R_50_FPN_LSJ.py": "configs/vild_r50.yaml",
    "configs/pictograms/lazy_vild.py": "configs/pictograms/vild.yaml",
    "configs/pictograms/lazy_vild_ensemble.py": "configs/pictograms/vild_ensemble.yaml",
    "configs/pictograms/lazy_vitdet.py": "configs/pictograms/vitdet.yaml",
}


def _numbers(module: torch.nn.Module) -> dict:
    """What the parts of a detector were built with, beside their weights."""
    heads, rpn = module.roi_heads, module.proposal_generator
    predictor = heads.box_predictor
    return {
        "pixels": (module.pixel_mean.tolist(), module.pixel_std.tolist(), module.input_format),
        "rpn": (rpn.pre_nms_topk, rpn.post_nms_topk, rpn.nms_thresh, rpn.smooth_l1_beta),
        "rpn sampling": (rpn.batch_size_per_image, rpn.positive_fraction),
        "anchors": [cell.tolist() for cell in rpn.anchor_generator.cell_anchors],
        "heads": (heads.num_classes, heads.batch_size_per_image, heads.positive_fraction),
        "vild": (heads.variant, heads.distillation_weight, heads.base_weight),
        "objectness": heads.objectness_weight,
        "levels": (list(heads.box_in_features), list(heads.mask_in_features)),
        "test": (predictor.test_score_thresh, predictor.test_nms_thresh),
        "detections": predictor.test_topk_per_image,
        "boxes": (tuple(predictor.box2box_transform.weights), predictor.smooth_l1_beta),
        "temperature": predictor.classifier.temperature,
        "novel": predictor.novel_training_logits,
    }


@pytest.mark.parametrize("path", LAZY_CONFIGS)
def test_lazy_config_builds_the_model_of_its_yaml_config(path):
    lazy = instantiate(LazyConfig.load(str(ROOT / path)).model)
    yaml = build_model(load_config(str(ROOT / LAZY_CONFIGS[path]), ["MODEL.DEVICE", "cpu"]))
    shapes = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (lazy, yaml))
    assert next(shapes) == next(shapes)
    assert _numbers(lazy) == _numbers(yaml)


def test_the_lazy_recipe_is_the_yaml_recipe():
    cfg = load_config(str(ROOT / "configs/vild_r50.yaml"))
    lazy = LazyConfig.load(str(ROOT / "configs/new_baselines/vild_R_50_FPN_LSJ.py"))
    solver = cfg.SOLVER
    assert lazy.train.max_iter == solver.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == solver.IMS_PER_BATCH
    optimizer = lazy.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.momentum) == (
        solver.BASE_LR,
        solver.WEIGHT_DECAY,
        solver.MOMENTUM,
    )
    rate = instantiate(lazy.lr_multiplier)
    for done, expected in ((0, 0.01), (1000, 1.0), (161999, 1.0), (162001, 0.1), (179999, 0.001)):
        assert rate(done / solver.MAX_ITER) == pytest.approx(expected)
    assert lazy.vocabulary.path == cfg.MODEL.OVD.VOCABULARY
    assert lazy.dataloader.train.mapper.cache.path == cfg.MODEL.OVD.DISTILLATION.CACHE


def test_every_lazy_config_is_compared():
    folders = ("new_baselines", "pictograms")
    found = {str(f.relative_to(ROOT)) for d in folders for f in (ROOT / "configs" / d).glob("*.py")}
    assert found == set(LAZY_CONFIGS)


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
