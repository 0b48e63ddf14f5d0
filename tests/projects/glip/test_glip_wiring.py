"""What a config says of prompts, and what of it cannot be meant."""

import json

import numpy as np
import pytest

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import load_training_dicts
from ovd_d2.engine.run import load_config
from ovd_d2.evaluation import build_evaluator
from ovd_d2.projects.glip import wiring
from ovd_d2.projects.glip.evaluation.flickr_recall import PhraseRecallEvaluator
from ovd_d2.projects.glip.passengers import PhrasesToFind
from ovd_d2.systems import SetupContext, system_of
from ovd_d2.vocabulary import Categories
from tests.integration.conftest import _drawn_once, mini  # noqa: F401
from tests.projects.glip.captioned import catalog, content, mapper_with, register  # noqa: F401

CONFIG = "projects/GLIP/configs/base_glip.yaml"
NAMES, CAPTIONS = "pictograms_v1_mini_train", "pictograms_v1_mini_captions_train"
VAL = "pictograms_v1_mini_val"


@pytest.fixture
def cfg(mini):  # noqa: F811
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.GLIP.TOKENIZER", "pictograms"])
    cfg.defrost()
    cfg.DATASETS.TRAIN = (NAMES, CAPTIONS)
    return cfg


def context(training=True):
    return SetupContext(training=training, embedding_dim=1, training_images=[{}])


def test_both_kinds_of_sets(cfg):
    mapper = mapper_with(*wiring.passengers(cfg))
    records = load_training_dicts(cfg)
    names = next(one for one in records if one["data_set"] == NAMES and one["annotations"])
    captions = next(one for one in records if one["data_set"] == CAPTIONS and one["annotations"])
    assert ". " in mapper(names)["caption"]
    assert mapper(captions)["caption"] == captions["caption"]
    for one in (names, captions):
        assert mapper(one)["instances"].gt_token_targets.any(dim=1).all()


def test_novel_names_are_never_asked_for(cfg):
    categories = get_categories(NAMES)
    novel = {name for name, flag in zip(categories.names, categories.novel, strict=True) if flag}
    tokenizer = wiring.load_tokenizer("pictograms")
    prompts, contiguous = wiring.detection_set(cfg, NAMES, tokenizer)
    asked, base = set(), categories.novel.index(False)
    for seed in range(40):
        asked |= set(prompts({base}, np.random.default_rng(seed)).caption.split(". "))
    assert novel and not novel & asked and len(asked) > len(novel)
    assert contiguous[1] == 0
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False  # the supervised upper line
    prompts, _ = wiring.detection_set(cfg, NAMES, tokenizer)
    asked = {k for s in range(40) for k in prompts({base}, np.random.default_rng(s)).labels}
    assert len(asked) == len(categories)


def test_sound_data_have_no_problems(cfg):
    assert list(wiring.key_problems(cfg)) == [] and list(wiring.problems(cfg, context())) == []
    assert system_of(cfg).free_categories


def test_everything_is_listed_at_once(cfg, tmp_path, catalog):  # noqa: F811
    table = content()
    register("glip_bad", tmp_path, table)
    table["annotations"][0]["tokens_positive"] = [[0, 99]]
    table["images"][1]["caption"] = 7
    (tmp_path / "captions.json").write_text(json.dumps(table), encoding="utf-8")
    cfg.MODEL.GLIP.TOKENIZER = str(tmp_path / "vocab.txt")
    cfg.MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS = (NAMES, CAPTIONS)
    cfg.DATASETS.TRAIN = (NAMES, CAPTIONS, "glip_bad")
    found = list(wiring.problems(cfg, context()))
    assert len(found) == 4
    assert found[0].startswith("MODEL.GLIP.TOKENIZER: tokenizer: no file at")
    assert found[1] == f"{wiring.KEY}.NEGATIVE_CAPTIONS: '{NAMES}' has no captions with spans"
    assert "image 1: tokens_positive" in found[2] and "image 2: its 'caption' is 7" in found[3]
    assert len(list(wiring.problems(cfg, context(training=False)))) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NAMES", "some", "NAMES: 'some' is not one of sampled, public, all"),
        ("NEGATIVES", -1, "NEGATIVES: -1, expected at least 0"),
        ("NEGATIVE_CAPTIONS", ("others",), "'others' is not in DATASETS.TRAIN"),
    ],
)
def test_values_that_cannot_be_meant(cfg, key, value, message):
    cfg.MODEL.GLIP.PROMPTS[key] = value
    (problem,) = wiring.key_problems(cfg)
    assert problem.startswith(wiring.KEY) and problem.endswith(message)


def test_too_many_names_for_one_prompt(cfg):
    cfg.MODEL.GLIP.PROMPTS.NAMES, cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = "all", False
    cfg.MODEL.GLIP.TOKENIZER = "pictograms"
    cfg.DATASETS.TRAIN = ("lvis_v1_train",)
    (problem,) = wiring.problems(cfg, context())
    assert problem.startswith(f"{wiring.KEY}.NAMES all, 'lvis_v1_train': its 1203 names have")


@pytest.mark.parametrize(("names", "shuffle"), [("sampled", True), ("all", True)])
def test_names_that_move_teach_an_offset_of_places_nothing(cfg, names, shuffle):
    # the tuning of Pictograms was such, and its AP fell below the teacher's
    prompt_tuning(cfg)
    cfg.MODEL.GLIP.PROMPTS.NAMES, cfg.MODEL.GLIP.PROMPTS.SHUFFLE = names, shuffle
    (problem,) = wiring.problems(cfg, context())
    assert f"NAMES {names}, SHUFFLE {shuffle}" in problem and "SHUFFLE False" in problem
    assert list(wiring.problems(cfg, context(training=False))) == []


def prompt_tuning(cfg):
    """One that is sound."""
    cfg.MODEL.GLIP.TUNING, cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = "prompt", False
    cfg.MODEL.GLIP.PROMPTS.NAMES, cfg.MODEL.GLIP.PROMPTS.SHUFFLE = "all", False
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAMES,), (VAL,)
    assert list(wiring.problems(cfg, context())) == []


def test_captions_of_other_places_are_refused_in_prompt_tuning(cfg, monkeypatch):
    prompt_tuning(cfg)
    cfg.DATASETS.TRAIN = (NAMES, CAPTIONS)
    cfg.DATASETS.TEST = (
        VAL,
        "coco_2017_val",
    )  # there is no file
    names = get_categories(VAL).names
    turned = {NAMES: Categories(names, [False] * 80), VAL: Categories(names[::-1], [False] * 80)}
    monkeypatch.setattr(wiring, "get_categories", turned.get)
    cfg.MODEL.GLIP.NAMES_PER_CAPTION = 3
    first, second, third = wiring.problems(cfg, context())
    assert f"each image of '{CAPTIONS}'" in first
    assert f"'{VAL}' has other names than '{NAMES}'" in second
    assert third.startswith("MODEL.GLIP.NAMES_PER_CAPTION 3")


def test_all_names_are_no_novel_ones_without_their_boxes(cfg):
    cfg.MODEL.GLIP.PROMPTS.NAMES = "all"
    (problem,) = wiring.problems(cfg, context())
    assert "novel names, whose boxes are left out" in problem
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False
    assert list(wiring.problems(cfg, context())) == []


def test_keys_that_nothing_reads(cfg):
    assert [keys for keys, _ in wiring.idle_keys(cfg)] == [(f"{wiring.KEY}.SHUFFLE",)]
    cfg.MODEL.GLIP.PROMPTS.NAMES = "public"
    assert [keys for keys, _ in wiring.idle_keys(cfg)] == [
        (f"{wiring.KEY}.SHUFFLE",),
        (f"{wiring.KEY}.NEGATIVES",),
    ]


def test_phrases_are_evaluated(cfg, tmp_path):
    name = "pictograms_v1_mini_captions_val"
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    assert isinstance(evaluator, PhraseRecallEvaluator)
    (passenger,) = wiring.test_passengers(cfg, name)
    assert isinstance(passenger, PhrasesToFind)
    assert wiring.test_passengers(cfg, "pictograms_v1_mini_val") == []
