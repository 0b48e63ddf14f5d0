"""Every shipped config builds a model, and no key of ours is dead."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ovd_d2 import add_ovd_config
from ovd_d2.data.augmentation import build_augmentations
from ovd_d2.engine.config_keys import flatten
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.modeling.norms import BATCH_NORMS
from ovd_d2.vild import get_variant

ROOT = Path(__file__).parents[1]
NO_VOCABULARY = ("MODEL.OVD.VOCABULARY", "")  # its file is not here
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def config(name, *opts):
    return load_config(str(ROOT / "configs" / name), opts)


@pytest.mark.parametrize("path", CONFIGS)
def test_config_builds(path):
    # On "meta" there are shapes only, no weights: fast. A ViT reads values when it is built.
    device = "cpu" if "vit" in Path(path).stem else "meta"
    cfg = load_config(str(ROOT / path), ["MODEL.DEVICE", device, *NO_VOCABULARY])
    with torch.device(device):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 5e5


@pytest.mark.parametrize("path", CONFIGS)
def test_output_folder_is_the_configs_name(path):
    """Two methods that write into one folder would take up each other's checkpoints."""
    name = Path(path).stem
    if name in ("base", "base_lvis", "base_rcnn_fpn", "continue"):
        return  # not trained themselves
    inside = Path(path).relative_to("configs").with_suffix("")
    assert f"./output/{inside}" == load_config(str(ROOT / path)).OUTPUT_DIR


LAZY_CONFIGS = {
    "configs/new_baselines/vild_R_50_FPN_LSJ.py": "configs/vild_r50.yaml",
    "configs/pictograms/lazy_vild.py": "configs/pictograms/vild.yaml",
    "configs/pictograms/lazy_vild_ensemble.py": "configs/pictograms/vild_ensemble.yaml",
    "configs/pictograms/lazy_vild_online.py": "configs/pictograms/vild_online.yaml",
    "configs/pictograms/lazy_vitdet.py": "configs/pictograms/vitdet.yaml",
}


def _numbers(module: torch.nn.Module) -> dict:
    """What the parts of a detector were built with, beside their weights."""
    heads, rpn = module.roi_heads, module.proposal_generator
    predictor = heads.box_predictor
    return {
        "pixels": (module.pixel_mean.tolist(), module.pixel_std.tolist(), module.input_format),
        "rpn loss": type(rpn),
        "rpn": (rpn.pre_nms_topk, rpn.post_nms_topk, rpn.nms_thresh, rpn.smooth_l1_beta),
        "rpn sampling": (rpn.batch_size_per_image, rpn.positive_fraction),
        "anchors": [cell.tolist() for cell in rpn.anchor_generator.cell_anchors],
        "heads": (heads.num_classes, heads.batch_size_per_image, heads.positive_fraction),
        "vild": (heads.variant, heads.distillation_weight),
        "ensemble": (heads.base_weight, heads.novel_weight),
        "objectness": heads.objectness_weight,
        "levels": (list(heads.box_in_features), list(heads.mask_in_features)),
        "test": (predictor.test_score_thresh, predictor.test_nms_thresh),
        "detections": predictor.test_topk_per_image,
        "boxes": (tuple(predictor.box2box_transform.weights), predictor.smooth_l1_beta),
        "coders": (type(rpn.box2box_transform), type(predictor.box2box_transform)),
        "matcher": (type(rpn.anchor_matcher), rpn.anchor_matcher.thresholds),
        "poolers": [_pooler(pooler) for pooler in (heads.box_pooler, heads.mask_pooler)],
        "official": [
            getattr(part, name, False)
            for part, name in (
                (predictor, "last_pixel"),
                (predictor, "loss_over_positives"),
                (heads.mask_head, "soft_targets"),
            )
        ],
        "norms": {(m.momentum, m.eps) for m in module.modules() if isinstance(m, BATCH_NORMS)},
        "padding": module.backbone.padding_constraints,
        "temperature": predictor.classifier.temperature,
        "novel": predictor.novel_training_logits,
    }


def _written(augmentation: T.Augmentation) -> str:
    """Its arguments, where lists and tuples are one."""
    written = str(augmentation).replace("[", "(").replace("]", ")")
    return written.replace(", sample_style='choice'", "")  # of one size


def _pooler(pooler: torch.nn.Module) -> tuple:
    return type(pooler), pooler.output_size, len(pooler.level_poolers)


@pytest.mark.parametrize("path", LAZY_CONFIGS)
def test_lazy_config_builds_the_model_of_its_yaml_config(path):
    config = LazyConfig.load(str(ROOT / path))
    config.model.roi_heads.box_predictor.classifier.vocabulary = None
    lazy = instantiate(config.model)
    options = ["MODEL.DEVICE", "cpu", *NO_VOCABULARY]
    yaml = build_model(load_config(str(ROOT / LAZY_CONFIGS[path]), options))
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
    for mapper, is_train in (
        (lazy.dataloader.train.mapper, True),
        (lazy.dataloader.test.mapper, False),
    ):
        ours, theirs = map(instantiate, mapper.augmentations), build_augmentations(cfg, is_train)
        assert list(map(_written, ours)) == list(map(_written, theirs))
    rate = instantiate(lazy.lr_multiplier)
    for done, expected in ((0, 0.01), (1000, 1.0), (161999, 1.0), (162001, 0.1), (179999, 0.001)):
        assert rate(done / solver.MAX_ITER) == pytest.approx(expected)
    assert lazy.vocabulary.path == cfg.MODEL.OVD.VOCABULARY
    assert (
        lazy.dataloader.train.mapper.passengers[0].store.path == cfg.MODEL.VILD.DISTILLATION.CACHE
    )


def test_every_lazy_config_is_compared():
    folders = ("new_baselines", "pictograms")
    found = {str(f.relative_to(ROOT)) for d in folders for f in (ROOT / "configs" / d).glob("*.py")}
    assert found == set(LAZY_CONFIGS)


def test_there_are_configs():
    assert "configs/vild_r50.yaml" in CONFIGS


@pytest.mark.parametrize("name", ["vild_text", "vild_image", "vild", "vild_ensemble"])
def test_variant_configs_say_their_variant(name):
    for path in (f"{name}_r50.yaml", f"{name}_r50_short.yaml", f"pictograms/{name}.yaml"):
        variant = config(path).MODEL.VILD.VARIANT
        assert variant == name


@pytest.mark.parametrize("suffix", ["", "_short"])
def test_resnet_152_has_the_papers_distillation_weights(suffix):
    for name, weight in (("vild", 1.0), ("vild_ensemble", 2.0)):
        cfg = config(f"{name}_r152{suffix}.yaml")
        assert cfg.MODEL.RESNETS.DEPTH == 152
        found = (cfg.MODEL.VILD.VARIANT, cfg.MODEL.VILD.DISTILLATION.WEIGHT)
        assert found == (name, weight)


@pytest.mark.parametrize("suffix", ["", "_short"])
def test_supervised_baselines_differ_in_the_annotations(suffix):
    base = config(f"supervised_base_r50{suffix}.yaml")
    everything = config(f"supervised_rfs_r50{suffix}.yaml")
    for cfg in (base, everything):
        assert cfg.MODEL.META_ARCHITECTURE == "BatchInvariantRCNN"
        distils = get_variant(cfg.MODEL.VILD.VARIANT).distils
        assert not distils  # no cache is opened
    assert base.DATASETS.TRAIN == ("lvis_v1_train_norare",)
    assert base.DATALOADER.FILTER_NOVEL_ANNOTATIONS
    assert everything.DATASETS.TRAIN == ("lvis_v1_train",)
    assert not everything.DATALOADER.FILTER_NOVEL_ANNOTATIONS
    sampling = (everything.DATALOADER.SAMPLER_TRAIN, everything.DATALOADER.REPEAT_THRESHOLD)
    assert sampling == ("RepeatFactorTrainingSampler", 0.001)


# Small networks on CPU cores have schedules of their own.
ON_CPU = ("pictograms", "own/cpu")


@pytest.mark.parametrize("path", [path for path in CONFIGS if not any(x in path for x in ON_CPU)])
def test_every_recipe_says_for_how_many_gpus_it_is(path):
    if Path(path).stem.startswith("base"):
        return  # no schedule
    solver = load_config(str(ROOT / path)).SOLVER
    assert solver.REFERENCE_WORLD_SIZE in (1, 8, 64)
    assert solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE == 0
    # One rule for all of them: 0.02 for 16 images.
    assert pytest.approx(0.02 * solver.IMS_PER_BATCH / 16) == solver.BASE_LR


@pytest.mark.parametrize("path", [path for path in CONFIGS if "short" in path or "coco" in path])
def test_pixels_fit_the_initial_weights(path):
    cfg = load_config(str(ROOT / path))
    assert cfg.INPUT.FORMAT == "RGB"  # torchvision's weights
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1


@pytest.mark.parametrize("name", ["vild_text", "vild", "vild_ensemble"])
def test_ov_coco_is_generalised(name):
    cfg = config(f"ov_coco_{name}_r50.yaml")
    found = (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.VILD.VARIANT)
    assert found == (65, name)
    assert cfg.DATASETS.TEST == ("coco_generalized_zeroshot_val",)


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
    assert (cfg.MODEL.OVD.TEMPERATURE, cfg.MODEL.VILD.DISTILLATION.WEIGHT) == (0.01, 0.5)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS) == (4e-5, 0, 0)
    norms = (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.RPN)
    norms += (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD)
    assert {node.NORM for node in norms} == {"SyncBN"}
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
        path.read_text()
        for folder in ("ovd_d2", "projects")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "config.py"
    )
    dead = [key for key in added if not re.search(rf"\b{key.rsplit('.', 1)[1]}\b", source)]
    assert dead == []


def test_the_online_config_differs_from_its_base_in_where_embeddings_come_from():
    online, cached = (
        dict(flatten(config(f"pictograms/{n}.yaml"))) for n in ("vild_online", "vild")
    )
    changed = {key for key, value in online.items() if value != cached[key]}
    part = "MODEL.VILD.DISTILLATION"
    assert changed == {f"{part}.CACHE", f"{part}.ONLINE.PROPOSALS", "OUTPUT_DIR"}
    assert online[f"{part}.CACHE"] == ""


def test_unknown_file_and_unknown_key_are_named():
    with pytest.raises(SetupError, match=r"configs/nothing\.yaml"):
        load_config("configs/nothing.yaml")
    with pytest.raises(SetupError, match=r"MODEL\.OVD\.VARIENT"):
        load_config(str(ROOT / "configs/vild_r50.yaml"), ["MODEL.OVD.VARIENT", "vild"])
