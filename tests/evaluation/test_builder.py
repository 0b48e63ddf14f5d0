from __future__ import annotations

import pytest
from detectron2.config import get_cfg
from evaluation_scenes import (
    COCO_IDS,
    NAMES,
    NOVEL,
    feed,
    make_dataset,
    noisy_detections,
)

from ovd_d2 import add_ovd_config
from ovd_d2.evaluation import (
    OpenVocabularyCOCOEvaluator,
    OpenVocabularyLVISEvaluator,
    build_evaluator,
    builder,
)
from ovd_d2.systems import System

IDS = list(range(1, len(NAMES) + 1))


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.MASK_ON = True
    return cfg


def test_lvis(register, cfg, tmp_path):
    register("ov_build", make_dataset(IDS), "lvis", thing_classes=NAMES)
    evaluator = build_evaluator(cfg, "ov_build")
    assert type(evaluator) is OpenVocabularyLVISEvaluator
    metrics = feed(evaluator, noisy_detections(make_dataset(IDS), IDS))
    # In an LVIS-format file rare is novel
    assert metrics["segm"]["AP_novel"] == pytest.approx(metrics["segm"]["APr"])
    assert (tmp_path / "run" / "inference" / "per_category.json").is_file()


def test_coco(register, cfg, tmp_path):
    dataset = make_dataset(COCO_IDS)
    for category in dataset["categories"]:
        del category["frequency"]
    mapping = {one: k for k, one in enumerate(COCO_IDS)}
    base_names = [name for name, flag in zip(NAMES, NOVEL, strict=True) if not flag]
    register(
        "ov_build",
        dataset,
        "coco",
        thing_classes=NAMES,
        thing_dataset_id_to_contiguous_id=mapping,
        base_classes=base_names,
    )
    evaluator = build_evaluator(cfg, "ov_build", str(tmp_path / "elsewhere"))
    assert type(evaluator) is OpenVocabularyCOCOEvaluator
    assert evaluator.evaluation.categories.novel == NOVEL
    metrics = feed(evaluator, noisy_detections(dataset, COCO_IDS))
    assert metrics["bbox"]["AP_base"] != pytest.approx(metrics["bbox"]["AP_novel"], abs=0.1)
    assert (tmp_path / "elsewhere" / "per_category.json").is_file()


@pytest.mark.parametrize(
    "mask_on, tasks",
    [(True, ["bbox", "segm"]), (False, ["bbox"])],
)
def test_tasks_follow_the_mask_head(register, cfg, mask_on, tasks):
    register("ov_build", make_dataset(IDS), "lvis", thing_classes=NAMES)
    cfg.MODEL.MASK_ON = mask_on
    metrics = feed(build_evaluator(cfg, "ov_build"), noisy_detections(make_dataset(IDS), IDS))
    assert sorted(metrics) == tasks


def test_a_data_set_without_masks_is_evaluated_by_boxes(register, cfg):
    register("ov_build", make_dataset(IDS), "lvis", thing_classes=NAMES, boxes_only=True)
    metrics = feed(build_evaluator(cfg, "ov_build"), noisy_detections(make_dataset(IDS), IDS))
    assert sorted(metrics) == ["bbox"]


@pytest.mark.parametrize(
    ("evaluator_type", "protocol", "title"),
    [
        ("lvis", "federated", "LVIS federated (best 300 detections per image)"),
        ("lvis", "fixed", "LVIS fixed AP (best 10,000 detections per category)"),
        ("coco", "fixed", "COCO (best 100 detections per image and category)"),
    ],
)
def test_protocol_and_engine_follow_the_config(register, cfg, evaluator_type, protocol, title):
    register("ov_build", make_dataset(IDS), evaluator_type, thing_classes=NAMES)
    cfg.TEST.OVD.PROTOCOL = protocol
    cfg.TEST.OVD.ENGINE = "hotcoco"
    assert build_evaluator(cfg, "ov_build").description == {
        "dataset": "ov_build",
        "protocol": title,
        "engine": "hotcoco 1.3.0",
    }


@pytest.mark.parametrize("evaluator_type", ["lvis", "coco"])
def test_settings_of_a_system_stand_with_the_table(
    register, cfg, evaluator_type, monkeypatch, caplog
):
    register("ov_build", make_dataset(IDS), evaluator_type, thing_classes=NAMES)
    system = System(
        "mine",
        "MODEL.MINE",
        lambda cfg: True,
        lambda cfg: None,
        evaluation_settings=lambda cfg, name: {"asked of": name},
    )
    monkeypatch.setattr(builder, "system_of", lambda cfg: system)
    evaluator = build_evaluator(cfg, "ov_build")
    titles = ["dataset", "protocol", "engine", "asked of"]
    assert list(evaluator.description) == titles and evaluator.description["asked of"] == "ov_build"
    with caplog.at_level("INFO"):
        feed(evaluator, noisy_detections(make_dataset(IDS), IDS))
    assert "; asked of: ov_build\n" in caplog.text


@pytest.mark.parametrize(
    ("key", "choices"), [("PROTOCOL", r"\['federated', 'fixed'\]"), ("ENGINE", "'hotcoco'")]
)
def test_unknown_protocol_or_engine(register, cfg, key, choices):
    register("ov_build", make_dataset(IDS), "lvis", thing_classes=NAMES)
    cfg.TEST.OVD[key] = "coconut"
    with pytest.raises(ValueError, match=rf"TEST\.OVD\.{key} is 'coconut', expected.*{choices}"):
        build_evaluator(cfg, "ov_build")


@pytest.mark.parametrize("evaluator_type", ["cityscapes_instance", None])
def test_unknown_type(register, cfg, evaluator_type):
    register("ov_build", make_dataset(IDS), evaluator_type, thing_classes=NAMES)
    with pytest.raises(
        ValueError, match=r"'ov_build' has evaluator_type .*\['coco', 'lvis', 'pascal_voc'\]"
    ):
        build_evaluator(cfg, "ov_build")


def test_unregistered_data_set(cfg):
    with pytest.raises(KeyError, match="'no_such_set' is not registered"):
        build_evaluator(cfg, "no_such_set")
