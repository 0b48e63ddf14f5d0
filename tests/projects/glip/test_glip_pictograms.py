"""The configs of Pictograms build and train, and what validation asks their images for stays."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import vocabulary_of
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config, train
from ovd_d2.engine.validation import build_validation_loader, validate
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.checks import key_problems
from ovd_d2.projects.glip.model import GLIP, LEVELS
from ovd_d2.projects.glip.showcase import SHOWCASE
from ovd_d2.projects.glip.wiring import TrainingNames
from ovd_d2.vocabulary import Categories, Vocabulary
from tests.integration.conftest import TRAIN, VAL, _drawn_once, arguments, mini  # noqa: F401
from tests.tiny import tiny_config, tiny_vocabulary
from tests.tiny_glip import tiny_glip

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "projects" / "GLIP" / "configs" / "pictograms"
TOKENIZER = ROOT / "projects" / "GLIP" / "glip" / "pictogram_tokenizer.json"
NAMES = [path.stem for path in sorted(CONFIGS.glob("glip_*.yaml"))]
CAPTIONS, CAPTIONS_VAL = "pictograms_v1_mini_captions_train", "pictograms_v1_mini_captions_val"


def config(name, *options):
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.WEIGHTS", "", *options])


def mini_config(name, output, *options):
    quick = ("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.STEPS", ())
    rest = ("MODEL.GLIP.BERT.PRETRAINED", "", "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", output)
    sets = ("DATASETS.TRAIN", (TRAIN, CAPTIONS), "DATASETS.TEST", (VAL,))
    return config(name, *quick, *map(str, rest[:-1]), str(output), *sets, *options)


@pytest.mark.parametrize("name", NAMES)
def test_config_builds(name):
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.OVD.VOCABULARY", ""])
    assert f"./output/pictograms/{name}" == cfg.OUTPUT_DIR
    assert list(key_problems(cfg)) == [] and idle_key_notices(cfg) == []
    with TOKENIZER.open() as stream:
        assert len(json.load(stream)["model"]["vocab"]) == cfg.MODEL.GLIP.BERT.VOCABULARY
    model = GLIP(cfg)
    maps = model.backbone(torch.zeros(1, 3, 160, 160))
    assert [maps[level].shape[-1] for level in LEVELS] == [20, 10, 5, 3, 2]


def test_the_showcase_has_them_all():
    assert {one.name for one in SHOWCASE.methods} == set(NAMES)


def test_keys_of_another_backbone_do_nothing():
    cfg = config("glip_detection")
    cfg.defrost()
    cfg.MODEL.GLIP.SWIN.WINDOW_SIZE = 4
    (notice,) = idle_key_notices(cfg)
    assert "MODEL.GLIP.SWIN.WINDOW_SIZE 4 has no effect: MODEL.BACKBONE.NAME is" in notice


def test_a_training_with_validation_loss(mini, tmp_path, arguments):  # noqa: F811
    period = ("TEST.OVD.VALIDATION_LOSS", "True", "TEST.EVAL_PERIOD", "2")
    cfg = mini_config("glip_captions", tmp_path, *period)
    train(cfg, arguments)
    metrics = (tmp_path / "metrics.json").read_text()
    assert '"val_loss/loss_tokens"' in metrics and '"bbox/AP50_novel"' in metrics


def inputs_of(cfg, name):
    return [one for (one,) in build_validation_loader(cfg, name)]


@pytest.mark.parametrize("name", [VAL, CAPTIONS_VAL])
def test_what_an_image_is_asked_for_in_validation_stays(mini, tmp_path, name):  # noqa: F811
    cfg = mini_config("glip_detection", tmp_path)
    first, second = inputs_of(cfg, name), inputs_of(cfg, name)
    assert [one["caption"] for one in first] == [one["caption"] for one in second]
    assert any(len(one["instances"]) for one in first)
    for one, again in zip(first, second, strict=True):
        targets = one["instances"].gt_token_targets
        assert targets.any(dim=1).all()
        assert torch.equal(targets, again["instances"].gt_token_targets)
    if name == VAL:
        assert len({one["caption"] for one in first}) > 1
        categories = get_categories(name)
        novel = {k for k, flag in enumerate(categories.novel) if flag}
        seen = {k for one in first for k in one["instances"].gt_classes.tolist()}
        assert novel and not novel & seen


def test_losses_of_validation_are_the_same_twice(mini, tmp_path):  # noqa: F811
    cfg = mini_config("glip_detection", tmp_path, "MODEL.OVD.VOCABULARY", "")
    model = GLIP(cfg)
    first, second = validate(cfg, model), validate(cfg, model)
    assert first == second and first["val_loss"]["loss_tokens"] > 0


def test_no_vocabulary_is_needed(mini, tmp_path):  # noqa: F811
    sets = ("DATASETS.TEST", str((CAPTIONS_VAL, VAL)))
    cfg = mini_config("glip_captions", tmp_path, "MODEL.OVD.VOCABULARY", "", *sets)
    check_setup(cfg, training=True, progress=False)


def test_each_data_set_is_evaluated_by_its_own_names(mini):  # noqa: F811
    model = tiny_glip(vocabulary=Vocabulary.of_names(Categories(["dog"], [False])))
    with vocabulary_of(VAL, model):
        assert model.vocabulary.names == get_categories(VAL).names
    assert model.vocabulary.names == ["dog"]
    with vocabulary_of(CAPTIONS_VAL, model):  # images bring what they are asked for
        assert model.vocabulary.names == ["dog"]
    model = tiny_glip()
    with vocabulary_of(VAL, model):
        assert model.vocabulary is not None
    assert model.vocabulary is None and "vocabulary" not in model.state_dict()


def test_captions_are_nothing_for_a_detector_of_names(mini):  # noqa: F811
    detector = build_model(tiny_config("vild_text"))
    detector.set_vocabulary(tiny_vocabulary())
    message = f"'{CAPTIONS_VAL}' is a grounding set"
    with pytest.raises(SetupError, match=message), vocabulary_of(CAPTIONS_VAL, detector):
        raise AssertionError
    assert detector.vocabulary.names == tiny_vocabulary().names


def test_a_training_leaves_its_names_in_its_checkpoints(mini):  # noqa: F811
    model = tiny_glip()
    TrainingNames(model, [TRAIN, CAPTIONS]).before_train()
    categories = get_categories(TRAIN)
    assert model.vocabulary.names == categories.names
    assert model.vocabulary.novel.tolist() == categories.novel
    TrainingNames(model, [CAPTIONS]).before_train()
    assert model.vocabulary.names == categories.names
