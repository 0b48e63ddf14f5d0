"""The configs of Pictograms build and train, and what validation asks their images for stays."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from ovd_d2.data.categories import get_categories
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper, objects_of
from ovd_d2.engine.build import get_base_dataset_dicts, load_training_dicts, vocabulary_of
from ovd_d2.engine.checks import check_setup, config_problems
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.lazy_checks import build_validation_loader as build_lazy_loader
from ovd_d2.engine.run import load_config, train
from ovd_d2.engine.transfer import evaluate_transfer
from ovd_d2.engine.validation import build_validation_loader, validate
from ovd_d2.errors import SetupError
from ovd_d2.pictograms.showcase import steps_of
from ovd_d2.pictograms.steps import Run
from ovd_d2.projects.glip.checks import key_problems
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.passengers import DetectionSet, TrainingPrompts, fixed
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.prompts.detection import DetectionPrompts
from ovd_d2.projects.glip.pseudo_labels import (
    LabelRun,
    Settings,
    images_of_data_set,
    label_images,
)
from ovd_d2.projects.glip.showcase import (
    SHOTS,
    SHOWCASE,
    SMALL_TEACHER,
    STUDENT,
    TEACHER,
    THRESHOLD,
)
from ovd_d2.projects.glip.wiring import hooks
from ovd_d2.vocabulary import Categories, Vocabulary
from tests.catalog import forget
from tests.integration.conftest import (  # noqa: F401
    LAZY_ON_MINI,
    TRAIN,
    VAL,
    _drawn_once,
    arguments,
    mini,
)
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
    assert [maps[level].shape[-1] for level in model.in_features] == [40, 20, 10]


def test_the_showcase_has_them_all():
    assert {one.name for one in (*SHOWCASE.methods, *SHOWCASE.quick)} == set(NAMES)


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


def test_boxes_of_novel_names_may_be_trained_on(mini, tmp_path):  # noqa: F811
    """It has no list of names that an open vocabulary must not have seen (a supervised line)."""
    every = ("DATALOADER.FILTER_NOVEL_ANNOTATIONS", "False", "DATASETS.TRAIN", str((VAL,)))
    cfg = mini_config("glip_detection", tmp_path, *every)
    check_setup(cfg, training=True, progress=False)
    novel, records = get_categories(VAL).novel, load_training_dicts(cfg)
    assert any(novel[a["category_id"]] for one in records for a in one["annotations"])


def test_transfer_needs_no_teacher(mini, tmp_path):  # noqa: F811
    """Names are read; a teacher that cannot be had is not asked for."""
    names = ("MODEL.OVD.VOCABULARY", "", "MODEL.OVD.TEACHER.PRETRAINED", "gone.safetensors")
    cfg = mini_config("glip_detection", tmp_path, *names)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": GLIP(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    report = evaluate_transfer(cfg, argparse.Namespace(eval_only=True), [VAL])
    assert report["teacher"] is None and report["prompts"] is None
    assert report["data_sets"][VAL]["categories"] == 80
    assert "AP50" in report["data_sets"][VAL]["bbox"]


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
    model, cfg = tiny_glip(), mini_config("glip_captions", "output")
    assert hooks(cfg, model) == []
    categories = get_categories(TRAIN)
    assert model.vocabulary.names == categories.names
    assert model.vocabulary.novel.tolist() == categories.novel
    alone = mini_config("glip_captions", "output", "DATASETS.TRAIN", str((CAPTIONS,)))
    captioned = tiny_glip()
    hooks(alone, captioned)
    assert captioned.vocabulary is None


def test_validation_of_a_lazy_config(mini):  # noqa: F811
    """Without a passenger for validation its images would bring no caption."""
    tokenizer = L(load_tokenizer)(where="pictograms")
    prompts = L(TrainingPrompts)(
        tokenizer=tokenizer,
        detection_sets=L(names_of)(name=VAL, tokenizer=tokenizer),
        generator_of=fixed,
    )
    cfg = LazyConfig.load("configs/pictograms/lazy_vild.py")
    cfg = LazyConfig.apply_overrides(cfg, list(LAZY_ON_MINI))
    cfg.dataloader.train.mapper.use_instance_mask = False
    cfg.dataloader.validation_passengers = [prompts]
    first, second = ([one["caption"] for (one,) in build_lazy_loader(cfg)] for _ in range(2))
    assert first == second and all(". " in one for one in first)
    assert isinstance(cfg.dataloader.train.mapper.passengers[0].per_image, int)  # stays


def names_of(name, tokenizer):
    categories = get_categories(name)
    contiguous = {one: k for k, one in enumerate(categories.ids)}
    return {name: DetectionSet(DetectionPrompts(categories.names, tokenizer), contiguous)}


def test_nothing_before_the_student_has_seen_a_novel_box():
    """What a config trains on that is not of base categories alone: by name."""
    seen = {}
    for name in NAMES:
        sets = config(name).DATASETS.TRAIN
        seen[name] = {one for one in sets if "train_all" in one or "shots" in one}
    assert not any(
        seen[f"glip_{one}"] for one in ("teacher", "small_teacher", "student", "detection")
    )
    captions = ("glip_captions", "glip_captions_quick")
    assert all(seen[name] == {"pictograms_v1_captions_train_all"} for name in captions)
    tuned = {f"glip_{mode}_{shots}" for mode in ("full", "linear", "prompt") for shots in SHOTS}
    tuned |= {"glip_small_full_all", "glip_small_prompt_all"}
    assert {name for name, sets in seen.items() if sets} == {*captions, *tuned}


@pytest.mark.parametrize("name", [one for one in NAMES if "_prompt_" in one])
def test_names_keep_their_places_while_the_prompt_is_tuned(name):
    prompts = config(name).MODEL.GLIP.PROMPTS
    assert prompts.NAMES == "all" and not prompts.SHUFFLE


def test_student_over_teacher(tmp_path):
    run = Run(tmp_path, 1)
    teacher, labels = STUDENT.before(run)
    student = STUDENT.step(run)
    assert labels.needs == ("data", teacher.name) and labels.name in student.needs
    tool = load_tool("pseudo_label")
    args = tool.parse_args(labels.arguments)
    assert args.dataset == "pictograms_v1_captions_train_all" and str(args.threshold) == THRESHOLD
    assert args.output / "data_set.yaml" == labels.product
    assert args.opts == ["MODEL.WEIGHTS", str(TEACHER.weights(run))]
    assert student.arguments[-2:] == ("DATASETS.OWN", str(labels.product))
    tuned = SHOWCASE.method("glip_prompt_5")
    assert tuned.before(run) == (teacher,) and teacher.name in tuned.needs(run)
    (small,) = SHOWCASE.method("glip_small_full_all").before(run)
    assert small == SMALL_TEACHER.step(run) != teacher
    demo = [step.name for step in steps_of(SHOWCASE, [run], SHOWCASE.select(SHOWCASE.demo))]
    assert teacher.name not in demo


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"projects/GLIP/tools/{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def found_at_the_corner(image):
    """A box for every phrase."""
    count = len(image.phrases)
    boxes = Boxes(torch.tensor([[2.0, 3, 40, 50]]).expand(count, 4).clone())
    size, classes = (image.height, image.width), torch.arange(count)
    return Instances(size, pred_boxes=boxes, scores=torch.full((count,), 0.9), pred_classes=classes)


def test_pseudo_labels_are_trained_on(mini, tmp_path):  # noqa: F811
    images = images_of_data_set("pictograms_v1_mini_captions_train_all")[:6]
    run = LabelRun(tmp_path, images, Settings("teacher", shard_size=3))
    label_images(images, found_at_the_corner, run, progress=False)
    sets = ("DATASETS.TRAIN", str((TRAIN, "pseudo_labels")), "DATASETS.TEST", "()")
    own = ("DATASETS.OWN", str(tmp_path / "data_set.yaml"), "MODEL.OVD.VOCABULARY", "")
    try:
        cfg = mini_config("glip_student", tmp_path / "out", *sets, *own)
        mini_config("glip_student", tmp_path / "out", *sets, *own)  # a second time changes nothing
        check_setup(cfg, training=True, progress=False)
        records = [one for one in load_training_dicts(cfg) if one["data_set"] == "pseudo_labels"]
        assert [one["caption"] for one in records] == [one.caption for one in images]
        mapped = OpenVocabularyDatasetMapper(cfg, is_train=True)(records[0])
        assert len(mapped["instances"]) == len(images[0].phrases)
        assert mapped["instances"].gt_token_targets.any(dim=1).all()
    finally:
        forget("pseudo_labels")
    missing = mini_config("glip_student", tmp_path, "DATASETS.OWN", str(tmp_path / "none.yaml"))
    assert f"DATASETS.OWN: no file at '{tmp_path / 'none.yaml'}'" in config_problems(missing, True)
    (tmp_path / "bad.yaml").write_text("a: 7")
    with pytest.raises(SetupError, match="DATASETS.OWN: .*bad.yaml: a: expected"):
        mini_config("glip_student", tmp_path, "DATASETS.OWN", str(tmp_path / "bad.yaml"))


def test_few_images_of_every_glyph(mini):  # noqa: F811
    name = "pictograms_v1_mini_shots1"
    whole = get_base_dataset_dicts("pictograms_v1_mini_shotsall")
    few = get_base_dataset_dicts(name)
    assert 0 < len(few) < len(whole) and not any(get_categories(name).novel)

    def shown(records):
        return {one["category_id"] for record in records for one in objects_of(record)}

    assert shown(few) == shown(whole)
    novel = get_categories("pictograms_v1_mini_train_all").novel
    assert any(novel[k] for k in shown(few))
