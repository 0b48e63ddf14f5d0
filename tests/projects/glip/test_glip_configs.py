"""Every config builds, and says what paper and public configs say."""

import pytest

from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config
from ovd_d2.projects.glip.checks import key_problems
from ovd_d2.systems import system_of
from tests.projects.glip.test_glip_official_weights import CONFIGS, meta_glip

# of configs.json beside the golden numbers, and tables 1 and 2 of the paper
PUBLIC = {
    "glip_t_a": {"MODEL.GLIP.FUSION": False, "SOLVER.MAX_ITER": 309375},
    "glip_t_b": {"MODEL.GLIP.FUSION": True, "SOLVER.MAX_ITER": 309375},
    "glip_t_c": {"SOLVER.MAX_ITER": 670312},
    "glip_t": {"MODEL.GLIP.BLOCKS": 6, "SOLVER.WEIGHT_DECAY": 1e-4, "SOLVER.EMA.ENABLED": True},
    "glip_l": {
        "MODEL.GLIP.BLOCKS": 8,
        "MODEL.GLIP.SWIN.WINDOW_SIZE": 12,
        "MODEL.GLIP.SWIN.DROP_PATH_RATE": 0.4,
        "SOLVER.MAX_ITER": 1_000_000,
        "SOLVER.WEIGHT_DECAY": 0.01,
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.EMA.ENABLED": False,
    },
}
# millions of values of the checkpoint's list, less buffers and the unused classifier
MILLIONS = {
    "glip_t_a": 151.5,
    "glip_t_b": 231.8,
    "glip_t_c": 231.8,
    "glip_t": 231.8,
    "glip_l": 430.4,
}


def config(name):
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu"])


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_there_are_configs():
    assert {path.stem for path in CONFIGS.glob("glip_*.yaml")} == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_config_builds_and_is_the_published_one(name):
    cfg = config(name)
    assert system_of(cfg).name == "GLIP"
    assert f"./output/{name}" == cfg.OUTPUT_DIR
    assert {key: value(cfg, key) for key in PUBLIC[name]} == PUBLIC[name]
    solver = cfg.SOLVER
    assert [round(one / solver.MAX_ITER, 2) for one in solver.STEPS] == [0.67, 0.89]
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS) == (64, 1e-4, 2000)
    assert solver.WEIGHT_DECAY_NORM == solver.WEIGHT_DECAY
    assert cfg.MODEL.GLIP.OFFSETS_ACROSS_LEVELS == "flat"
    assert list(key_problems(cfg)) == []
    model = meta_glip(name)
    count = sum(one.numel() for one in model.parameters()) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.25)


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        ("GLIP.OFFSETS_ACROSS_LEVELS", "near", "'near' is none of resized, flat"),
        ("GLIP.AGGREGATION", "sum", "'sum' is none of mean, max, power, one_hot"),
        ("GLIP.TUNING", "few", "'few' is none of full, linear, prompt"),
        ("GLIP.IN_FEATURES", (), "IN_FEATURES is empty"),
        ("GLIP.BLOCKS", 0, "BLOCKS: 0, expected at least 1"),
        ("GLIP.CAPTIONS_PER_PASS", 0, "CAPTIONS_PER_PASS: 0, expected at least 1"),
        ("GLIP.FOCAL_LOSS_ALPHA", 1.5, "FOCAL_LOSS_ALPHA: 1.5 is not between 0 and 1"),
        ("GLIP.FOCAL_LOSS_GAMMA", -1.0, "FOCAL_LOSS_GAMMA: -1.0, expected at least 0"),
        ("GLIP.BOX_WEIGHT", -2.0, "BOX_WEIGHT: -2.0, expected at least 0"),
        ("GLIP.DROPOUT", 1.5, "DROPOUT: 1.5 is not between 0 and 1"),
        ("GLIP.FUSION_DIM", 30, "FUSION_DIM 30 is no multiple of 8 heads"),
        ("GLIP.BERT.WIDTH", 30, "BERT.WIDTH 30 is no multiple of 12 heads"),
        ("FPN.OUT_CHANNELS", 48, "OUT_CHANNELS 48 is no multiple of 32"),
    ],
)
def test_values_that_cannot_be_meant(key, wrong, message):
    cfg = config("glip_t")
    cfg.merge_from_list([f"MODEL.{key}", wrong])
    (problem,) = key_problems(cfg)
    assert problem.startswith("MODEL.") and message in problem


def test_keys_that_do_nothing():
    cfg = config("glip_t_a")
    cfg.merge_from_list(["MODEL.GLIP.FUSION_HEADS", 4])
    (notice,) = idle_key_notices(cfg)
    assert "MODEL.GLIP.FUSION_HEADS 4 has no effect: MODEL.GLIP.FUSION is False" in notice
    cfg = config("glip_t")  # its offsets are "flat"
    cfg.merge_from_list(["MODEL.GLIP.DYNAMIC_CONV", False])
    (notice,) = idle_key_notices(cfg)
    assert "OFFSETS_ACROSS_LEVELS 'flat' has no effect: MODEL.GLIP.DYNAMIC_CONV is False" in notice
