"""Every config builds, and says what paper and public configs say."""

import pytest

from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.checks import key_problems
from ovd_d2.systems import system_of
from tests.projects.glip.test_glip_official_weights import CONFIGS, meta_glip

# of configs.json beside the golden numbers, and tables 1 and 2 of the paper
GOLD = ("goldg_mixed_train_no_coco", "flickr30k_separate_train")
PUBLIC = {
    "glip_t_a": {
        "MODEL.GLIP.FUSION": False,
        "SOLVER.MAX_ITER": 309375,
        "DATASETS.TRAIN": ("objects365_v1_train",),
    },
    "glip_t_b": {
        "MODEL.GLIP.FUSION": True,
        "SOLVER.MAX_ITER": 309375,
        "DATASETS.TRAIN": ("objects365_v1_train",),
    },
    "glip_t_c": {
        "SOLVER.MAX_ITER": 670312,
        "DATASETS.TRAIN": ("objects365_v1_train", *GOLD),
        "DATASETS.TRAIN_REPEAT_FACTOR": [],
    },
    "glip_t": {
        "MODEL.GLIP.BLOCKS": 6,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.WEIGHT_DECAY_STEPS": 0,
        "SOLVER.EMA.ENABLED": True,
        "DATASETS.TRAIN": ("objects365_v1_train", *GOLD, "pseudo_labels"),
        "MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS": (),
    },
    "glip_l": {
        "DATASETS.TRAIN": ("objects365_v2_train", *GOLD, "pseudo_labels"),
        "DATASETS.TRAIN_REPEAT_FACTOR": [
            ["flickr30k_separate_train", 8],
            ["goldg_mixed_train_no_coco", 4],
            ["objects365_v2_train", 2],
        ],
        "DATALOADER.SAMPLER_TRAIN": "WeightedTrainingSampler",
        "MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS": ("pseudo_labels",),
        "SOLVER.WEIGHT_DECAY_STEPS": 0.667,
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


# What a machine without data lacks, below DETECTRON2_DATASETS.
FILES = {
    "objects365_v1_train": "objects365v1/objects365_train.json",
    "objects365_v2_train": "objects365/annotations/zhiyuan_objv2_train.json",
    "goldg_mixed_train_no_coco": "mdetr_annotations/final_mixed_train_no_coco.json",
    "flickr30k_separate_train": "mdetr_annotations/final_flickr_separateGT_train.json",
    "coco_2017_val": "coco/annotations/instances_val2017.json",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_machine_without_the_data_is_told_all_that_is_missing(name):
    options = ["MODEL.GLIP.TOKENIZER", "pictograms", "MODEL.GLIP.BERT.PRETRAINED", ""]
    options += ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", False]
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), options)
    with pytest.raises(SetupError) as caught:
        check_setup(cfg, training=True, progress=False)
    sets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    assert len(caught.value.problems) == len(sets)
    for one, problem in zip(sets, caught.value.problems, strict=True):
        if one == "pseudo_labels":
            assert f"'{one}' is not registered: describe it in a yaml file" in problem
            assert "OVD_DATASETS or DATASETS.OWN names" in problem
        else:
            assert f"'{one}' not found: " in problem and f"/{FILES[one]} (set DETEC" in problem


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
