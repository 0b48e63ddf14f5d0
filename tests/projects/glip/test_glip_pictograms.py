"""The configs of Pictograms build and train, and what validation asks their images for stays."""

import json
from pathlib import Path

import pytest
import torch

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config, train
from ovd_d2.engine.validation import build_validation_loader, validate
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.checks import key_problems
from ovd_d2.projects.glip.model import GLIP, LEVELS
from ovd_d2.projects.glip.showcase import SHOWCASE
from tests.integration.conftest import TRAIN, VAL, _drawn_once, arguments, mini  # noqa: F401

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


def test_a_vocabulary_is_needed_only_where_names_are_evaluated(mini, tmp_path):  # noqa: F811
    empty = ("MODEL.OVD.VOCABULARY", "")
    alone = ("DATASETS.TRAIN", str((CAPTIONS,)))
    for test, train_sets in (((), ()), ((CAPTIONS_VAL,), alone)):
        sets = ("DATASETS.TEST", str(test), *train_sets)
        cfg = mini_config("glip_captions", tmp_path, *empty, *sets)
        check_setup(cfg, training=True, progress=False)
    cfg = mini_config("glip_captions", tmp_path, *empty, "DATASETS.TEST", str((CAPTIONS_VAL, VAL)))
    with pytest.raises(SetupError, match="VOCABULARY is empty"):
        check_setup(cfg, training=True, progress=False)
