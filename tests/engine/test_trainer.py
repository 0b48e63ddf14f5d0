import json
import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from ovd_d2.engine import build
from ovd_d2.engine.hooks import WeightDecaySteps
from ovd_d2.engine.trainer import OpenVocabularyTrainer, results_path, without_nan
from tests.tiny import tiny_config, tiny_vocabulary


def test_the_configured_vocabulary_wins_over_the_checkpoints(tmp_path):
    # Both have four names: without care the checkpoint's would be taken, and nobody would see it.
    cfg = tiny_config()
    trained = build_model(cfg)
    trained.set_vocabulary(tiny_vocabulary(seed=1))
    DetectionCheckpointer(trained, save_dir=str(tmp_path)).save("model")
    wanted = tiny_vocabulary(["dog", "cow", "bell", "rat"], seed=2)
    wanted.save(tmp_path / "vocabulary.safetensors")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    model = build.build_open_vocabulary_model(cfg)
    classifier = model.roi_heads.box_predictor.classifier
    assert torch.equal(classifier.text_embeddings, wanted.embeddings)
    assert classifier.novel.tolist() == [True, False, False, False]
    assert torch.equal(
        model.backbone.fpn_output3.weight, trained.backbone.fpn_output3.weight
    )  # the weights did come


def test_without_a_configured_vocabulary_the_checkpoints_stays(tmp_path):
    cfg = tiny_config()
    trained = build_model(cfg)
    trained.set_vocabulary(tiny_vocabulary(seed=1))
    DetectionCheckpointer(trained, save_dir=str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    model = build.build_open_vocabulary_model(cfg)
    classifier = model.roi_heads.box_predictor.classifier
    assert torch.equal(classifier.text_embeddings, tiny_vocabulary(seed=1).embeddings)


def test_a_checkpoint_with_another_number_of_names_loads_all_but_the_names(tmp_path):
    cfg = tiny_config()
    trained = build_model(cfg)
    trained.set_vocabulary(tiny_vocabulary(["dog", "cow"]))
    DetectionCheckpointer(trained, save_dir=str(tmp_path)).save("model")
    tiny_vocabulary().save(tmp_path / "vocabulary.safetensors")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    model = build.build_open_vocabulary_model(cfg)
    assert model.roi_heads.num_classes == 4
    projection = model.roi_heads.box_predictor.projection.weight
    assert torch.equal(projection, trained.roi_heads.box_predictor.projection.weight)


def test_undefined_numbers_become_null():
    results = {"bbox": {"AP": 1.5, "APl": math.nan}}
    assert json.loads(json.dumps(without_nan(results))) == {"bbox": {"AP": 1.5, "APl": None}}


def test_results_lie_beside_the_detections():
    assert results_path("out").parts == ("out", "inference", "results.json")


def test_images_without_annotation_stay_or_go_as_the_config_says(monkeypatch):
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("any",)
    box = {"bbox": [0, 0, 5, 5], "category_id": 0, "iscrowd": 0}
    novel = {**box, "category_id": 3}
    records = [
        {"image_id": 1, "annotations": [dict(box)]},
        {"image_id": 2, "annotations": [dict(novel)]},
    ]
    monkeypatch.setattr(build, "get_detection_dataset_dicts", lambda *_, **__: records)

    class Table:
        novel = [False, False, False, True]

    monkeypatch.setattr(build, "get_categories", lambda _: Table)
    kept = build.load_training_dicts(cfg)
    assert [(r["image_id"], len(r["annotations"])) for r in kept] == [(1, 1), (2, 0)]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert [r["image_id"] for r in build.load_training_dicts(cfg)] == [1]
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False
    assert [r["image_id"] for r in build.load_training_dicts(cfg)] == [1, 2]


def records_of(categories):
    """One image a list of category ids."""
    return [
        {
            "image_id": k,
            "file_name": f"{k}.png",
            "height": 64,
            "width": 64,
            "annotations": [{"bbox": [0, 0, 5, 5], "category_id": c, "iscrowd": 0} for c in ids],
        }
        for k, ids in enumerate(categories)
    ]


class FourNames:
    novel = [False, False, False, True]


@pytest.fixture
def two_novel_images(monkeypatch):
    """Ten images of category 0, one of these with 1 beside it; two hold the novel category 3."""
    categories = [[0] for _ in range(7)] + [[0, 1], [0, 3], [0, 3]]
    monkeypatch.setattr(
        build, "get_detection_dataset_dicts", lambda *_, **__: records_of(categories)
    )
    monkeypatch.setattr(build, "get_categories", lambda _: FourNames)


def repeat_factors(cfg):
    sampler = build.build_train_loader(cfg).sampler
    return sampler._int_part + sampler._frac_part


def test_repeat_factors_do_not_know_the_novel_categories(two_novel_images):
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("any",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    factors = repeat_factors(cfg)
    # Category 1 is in 1 of 10 images: sqrt(0.4 / 0.1) = 2. The novel one (2 of 10) counts nowhere.
    assert factors.tolist() == [1.0] * 7 + [2.0, 1.0, 1.0]
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False
    assert repeat_factors(cfg)[-1] == pytest.approx(2**0.5)


@pytest.mark.parametrize("gpus", [1, 4, 16])
def test_the_number_of_gpus_rescales_the_recipe(two_novel_images, monkeypatch, tmp_path, gpus):
    cfg = tiny_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TRAIN = ("any",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(["SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 32])
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.04, "SOLVER.OPTIMIZER", "SGD"])
    cfg.merge_from_list(["SOLVER.LR_MULTIPLIERS", ()])
    cfg.merge_from_list(["SOLVER.MAX_ITER", 9000, "SOLVER.STEPS", (6000, 8000)])
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 1000, "SOLVER.WEIGHT_DECAY_STEPS", 0.5])
    cfg.freeze()
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: gpus)
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: 0)
    monkeypatch.setattr("detectron2.engine.defaults.create_ddp_model", lambda model, **_: model)
    trainer = OpenVocabularyTrainer(cfg, check=False)  # the images are made up
    factor = gpus / 8
    solver = trainer.cfg.SOLVER
    scaled = (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS)
    steps = (6000 / factor, 8000 / factor)
    assert scaled == (32 * factor, 9000 / factor, steps, 1000 / factor)
    assert trainer.max_iter == solver.MAX_ITER
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.04 * factor] * len(rates))
    assert trainer.data_loader.batch_size == 4  # images per GPU: unchanged
    (decay,) = [hook for hook in trainer._hooks if isinstance(hook, WeightDecaySteps)]
    found = []
    for done in (0, 3000, 4000):  # half of the steps of the rate
        trainer.iter = round(done / factor)
        decay.before_step()
        found.append(trainer.optimizer.param_groups[0]["weight_decay"] / solver.WEIGHT_DECAY)
    assert found == pytest.approx([1, 0.1, 0.01])
    # What does not change with the number of GPUs.
    assert trainer.cfg.MODEL.OVD == cfg.MODEL.OVD
