"""Our config keys beside those of another project, added before or after, and old names."""

import pytest
from detectron2.config import CfgNode, get_cfg

from ovd_d2 import add_ovd_config
from ovd_d2.config import renamed_keys
from ovd_d2.engine.config_keys import flatten
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError


def add_project_config(cfg):
    """Keys as SwinT_detectron2 ("AdamW"), Detic (multiplier) and unilm's DiT (MODEL.VIT) add."""
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    cfg.MODEL.ROI_BOX_HEAD.FC_NORM = "LN"
    cfg.MODEL.RPN.NORM = "GN"
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False
    cfg.INPUT.LSJ = CfgNode({"ENABLED": True, "SIZE": 896})
    cfg.MODEL.VIT = CfgNode({"NAME": "dit_base", "IMG_SIZE": [224, 224]})


PROJECT_KEYS = {
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.BACKBONE_MULTIPLIER": 0.5,
    "MODEL.ROI_BOX_HEAD.FC_NORM": "LN",
    "MODEL.RPN.NORM": "GN",
    "DATALOADER.FILTER_NOVEL_ANNOTATIONS": False,
    "INPUT.LSJ.ENABLED": True,
    "INPUT.LSJ.SIZE": 896,
    "MODEL.VIT.NAME": "dit_base",
    "MODEL.VIT.IMG_SIZE": [224, 224],
}


@pytest.fixture(params=["before", "after"])
def project_cfg(request):
    cfg = get_cfg()
    steps = [add_project_config, add_ovd_config]
    for step in steps if request.param == "before" else reversed(steps):
        step(cfg)
    return cfg


def test_no_key_of_another_project_is_overwritten(project_cfg):
    values = dict(flatten(project_cfg))
    assert {key: values[key] for key in PROJECT_KEYS} == PROJECT_KEYS
    assert values["MODEL.OVD.VIT.IMG_SIZE"] == 1024


def test_a_project_merges_its_own_key_that_was_once_ours(project_cfg, tmp_path):
    path = tmp_path / "project.yaml"
    path.write_text("MODEL:\n  VIT:\n    NAME: dit_large\nSOLVER:\n  OPTIMIZER: SGD\n")
    project_cfg.merge_from_file(str(path))
    assert (project_cfg.MODEL.VIT.NAME, project_cfg.SOLVER.OPTIMIZER) == ("dit_large", "SGD")


def test_our_keys_join_a_node_that_is_there_already():
    cfg = get_cfg()
    add_project_config(cfg)
    cfg.MODEL.OVD = CfgNode({"WITH_PSEUDO_LABELS": True})
    add_ovd_config(cfg)
    assert (cfg.INPUT.LSJ.MIN_SCALE, cfg.INPUT.LSJ.MAX_SCALE) == (0.1, 2.0)
    assert cfg.MODEL.OVD.WITH_PSEUDO_LABELS and cfg.MODEL.OVD.BACKGROUND == "learned"


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("old", "new"), renamed_keys().items())
def test_an_old_name_is_an_error_that_names_the_new_one(old, new, tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    assert new in {*dict(flatten(cfg)), *(key.rpartition(".")[0] for key, _ in flatten(cfg))}
    value = {"MODEL.VIT": {"DEPTH": 3}, "MODEL.OVD.DISTILLATION": {"WEIGHT": 1.0}}.get(old, "")
    path = tmp_path / "old.yaml"
    path.write_text(CfgNode(nested(old, value)).dump())
    with pytest.raises(KeyError, match=f"Key {old} was renamed to {new}"):
        cfg.merge_from_file(str(path))
    with pytest.raises(SetupError, match=rf"old\.yaml: the key {old}\S* was renamed to {new}"):
        load_config(str(path))


def test_an_old_name_among_the_options():
    with pytest.raises(SetupError, match=r"MODEL.VIT.DEPTH was renamed to MODEL.OVD.VIT.DEPTH"):
        load_config("configs/pictograms/vitdet.yaml", ["MODEL.VIT.DEPTH", "3"])
