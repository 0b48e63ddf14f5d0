"""The LVIS recipes as they are shipped, but for sizes, on a miniature LVIS.

    OVD_D2_RECIPE_ITERATIONS=20 python -m pytest -s tests/integration/test_lvis_recipes.py

trains every one of them, the short ones too, for 20 iterations and says the losses.
"""

import argparse
import json
import math
import os
from pathlib import Path

import pytest
from detectron2.config import LazyCall, LazyConfig
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec

from ovd_d2.data.mapper import OpenVocabularyDatasetMapper, mapping_problems
from ovd_d2.engine import lazy, run
from ovd_d2.engine.build import load_training_dicts
from ovd_d2.modeling import EmbeddingProjection, RegionEmbeddingHead
from ovd_d2.vild import VARIANTS
from tests.mini_lvis import NAMES, TRAIN_IMAGES, WITHOUT_BASE, mini_lvis

CONFIGS = Path(__file__).parents[2] / "configs"
ITERATIONS = int(os.environ.get("OVD_D2_RECIPE_ITERATIONS", "2"))
YAML = sorted(
    path.stem
    for path in CONFIGS.glob("*_r*.yaml")
    if not path.stem.startswith(("base_", "ov_coco", "clip_crops", "text_and"))  # not LVIS, or
    and (ITERATIONS > 2 or "short" not in path.stem)  # only evaluated
)
SIZE, WIDTH, HIDDEN = 128, 16, 32
QUICK = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": WIDTH,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": WIDTH,
    "MODEL.ROI_BOX_HEAD.FC_DIM": HIDDEN,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": WIDTH,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE": 8,
    "INPUT.LSJ.SIZE": SIZE,
    "INPUT.MIN_SIZE_TEST": SIZE,
    "INPUT.MAX_SIZE_TEST": SIZE,
    "MODEL.VILD.SQUARE_PAD": SIZE,
    "INPUT.MIN_SIZE_TRAIN": (SIZE,),
    "INPUT.MAX_SIZE_TRAIN": 2 * SIZE,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": (),
    "SOLVER.AMP.ENABLED": False,  # on a CPU
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.02 * 2 / 16,  # the rule of all recipes
    "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": ITERATIONS,
    "SEED": 30,  # whose first two batches hold images with and without base objects
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with mini_lvis(tmp_path_factory.mktemp("lvis")) as made:
        yield made


@pytest.fixture
def mapped(monkeypatch):
    """How many objects the images had that were trained on, in their order."""
    counts, true_call = [], OpenVocabularyDatasetMapper.__call__

    def counting(self, dataset_dict):
        result = true_call(self, dataset_dict)
        if self.is_train:
            counts.append(len(result["instances"]))
        return result

    monkeypatch.setattr(OpenVocabularyDatasetMapper, "__call__", counting)
    return counts


def quick_config(name, output):
    options = [part for pair in QUICK.items() for part in pair]
    return run.load_config(str(CONFIGS / f"{name}.yaml"), [*options, "OUTPUT_DIR", str(output)])


def check_losses(name, output, mapped):
    lines = (output / "metrics.json").read_text().splitlines()
    losses = {
        key: value for line in lines for key, value in json.loads(line).items() if "loss" in key
    }
    print(f"{name}: {ITERATIONS} iterations, total loss {losses['total_loss']:.3f}")
    assert all(math.isfinite(value) for value in losses.values())
    used = mapped[: 2 * ITERATIONS]
    assert 0 in used and max(used) > 0
    return set(losses)


def test_the_miniature_has_what_lvis_has(place):
    for name in NAMES[:2]:
        records = DatasetCatalog.get(name)
        annotated = {one["category_id"] for record in records for one in record["annotations"]}
        assert annotated == set(range(1203))
        assert len({(record["height"], record["width"]) for record in records}) == 5
        assert all(Path(record["file_name"]).is_file() for record in records)
    base = DatasetCatalog.get("lvis_v1_train_norare")
    assert len(base) == TRAIN_IMAGES
    assert sum(not record["annotations"] for record in base) == WITHOUT_BASE
    assert len(DatasetCatalog.get("lvis_v1_minival")) == 3


def test_an_image_without_base_objects_maps_in_the_full_recipe(place, tmp_path):
    cfg = quick_config("vild_r50", tmp_path)
    mapper = OpenVocabularyDatasetMapper(cfg, is_train=True)
    assert mapper.recompute_boxes
    assert mapping_problems(mapper, load_training_dicts(cfg)) == []


@pytest.mark.parametrize("name", YAML)
def test_a_yaml_recipe_trains(name, place, mapped, tmp_path):
    cfg = quick_config(name, tmp_path)
    args = argparse.Namespace(config_file="", resume=False, eval_only=False, opts=[])
    run.train(cfg, args)
    losses = check_losses(name, tmp_path, mapped)
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"} <= losses
    distils = VARIANTS[cfg.MODEL.VILD.VARIANT].distils
    assert ("loss_distillation" in losses) == distils


def quick_lazy_config(variant, output):
    cfg = LazyConfig.load(str(CONFIGS / "new_baselines" / "vild_R_50_FPN_LSJ.py"))
    cfg.train.update(max_iter=ITERATIONS, device="cpu", output_dir=str(output), seed=QUICK["SEED"])
    cfg.optimizer.lr = QUICK["SOLVER.BASE_LR"]
    part = cfg.dataloader.train
    part.update(total_batch_size=2, num_workers=0)
    _, jitter, crop = part.mapper.augmentations
    jitter.resize.update(target_height=SIZE, target_width=SIZE)
    crop.crop_size = (SIZE, SIZE)
    part.mapper.passengers[0].per_image = 8
    cfg.dataloader.test.num_workers = 0
    resize = cfg.dataloader.test.mapper.augmentations[0].resize
    resize.update(short_edge_length=SIZE, max_size=SIZE)
    cfg.dataloader.evaluator.engine.name = "hotcoco"  # the numbers of the reference, sooner
    shrink(cfg.model)
    cfg.model.roi_heads.variant.name = variant
    if VARIANTS[variant].separate_heads:
        add_image_head(cfg.model.roi_heads)
    if not VARIANTS[variant].distils:
        part.mapper.passengers = []
    return cfg


def shrink(model):
    model.backbone.update(out_channels=WIDTH, square_pad=SIZE)
    model.proposal_generator.head.in_channels = WIDTH
    model.proposal_generator.update(pre_nms_topk=(100, 50), post_nms_topk=(50, 20))
    heads = model.roi_heads
    heads.batch_size_per_image = 16
    heads.box_head.update(
        input_shape=ShapeSpec(channels=WIDTH, height=7, width=7),
        conv_dims=[WIDTH] * 4,
        fc_dims=[HIDDEN] * 2,
    )
    heads.box_predictor.update(input_shape=ShapeSpec(channels=HIDDEN), test_topk_per_image=5)
    heads.mask_head.update(
        input_shape=ShapeSpec(channels=WIDTH, height=14, width=14), conv_dims=[WIDTH] * 5
    )


def add_image_head(heads):
    """As configs/pictograms/lazy_vild_ensemble.py."""
    heads.image_head = LazyCall(RegionEmbeddingHead)(
        trunk="${..box_head}",
        projection=LazyCall(EmbeddingProjection)(
            input_shape="${...box_predictor.input_shape}",
            embedding_dim="${...box_predictor.classifier.embedding_dim}",
        ),
    )


@pytest.mark.parametrize("variant", ["vild_text", "vild_ensemble"])
def test_the_lazy_recipe_trains_and_evaluates(variant, place, mapped, tmp_path):
    cfg = quick_lazy_config(variant, tmp_path)
    args = argparse.Namespace(config_file="", resume=False, eval_only=False, opts=[])
    lazy.train(cfg, args)
    losses = check_losses(f"lazy {variant}", tmp_path, mapped)
    assert ("loss_distillation" in losses) == VARIANTS[variant].distils
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    for task in ("bbox", "segm"):
        assert {"AP", "APr", "AP50_base", "AP50_novel"} <= set(results[task])
