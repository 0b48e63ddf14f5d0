"""What a config says of prompts, and what of it cannot be meant."""

import numpy as np
import pytest

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import load_training_dicts
from ovd_d2.engine.run import load_config
from ovd_d2.engine.validation import selection_of, selection_problems
from ovd_d2.evaluation import build_evaluator
from ovd_d2.projects.glip import wiring
from ovd_d2.projects.glip.evaluation.flickr_recall import PhraseRecallEvaluator
from ovd_d2.projects.glip.passengers import PhrasesToFind
from tests.integration.conftest import _drawn_once, mini  # noqa: F401
from tests.projects.glip.captioned import mapper_with

CONFIG = "projects/GLIP/configs/base_glip.yaml"
NAMES, CAPTIONS = "pictograms_v1_mini_train", "pictograms_v1_mini_captions_train"
VAL = "pictograms_v1_mini_val"


@pytest.fixture
def cfg(mini):  # noqa: F811
    """Sound ones, of both kinds."""
    texts = ("MODEL.GLIP.TOKENIZER", "pictograms", "MODEL.GLIP.BERT.PRETRAINED", "")
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu", *texts])
    cfg.defrost()
    cfg.DATASETS.TRAIN = (NAMES, CAPTIONS)
    return cfg


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


def test_keys_that_nothing_reads(cfg):
    assert [keys for keys, _ in wiring.idle_keys(cfg)] == [(f"{wiring.KEY}.SHUFFLE",)]
    cfg.MODEL.GLIP.PROMPTS.NAMES = "public"
    assert [keys for keys, _ in wiring.idle_keys(cfg)] == [
        (f"{wiring.KEY}.SHUFFLE",),
        (f"{wiring.KEY}.NEGATIVES",),
    ]


def test_recall_of_phrases_may_choose_the_best_checkpoint(cfg):
    phrases = "pictograms_v1_mini_captions_val"
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 10, (phrases,)
    for metric in ("phrases/R@1", "phrases/R@all", "phrases/merged-R@10"):
        cfg.TEST.OVD.BEST_CHECKPOINT = metric
        assert list(selection_problems(selection_of(cfg))) == []
    cfg.TEST.OVD.BEST_CHECKPOINT = "bbox/AP"  # there are no such numbers
    (problem,) = selection_problems(selection_of(cfg))
    assert "is no metric of these evaluations" in problem and "phrases/R@" in problem
    cfg.DATASETS.TEST = (phrases, VAL)
    for metric in (f"{VAL}/bbox/AP", f"{phrases}/phrases/R@5"):
        cfg.TEST.OVD.BEST_CHECKPOINT = metric
        assert list(selection_problems(selection_of(cfg))) == []


def test_phrases_are_evaluated(cfg, tmp_path):
    name = "pictograms_v1_mini_captions_val"
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    assert isinstance(evaluator, PhraseRecallEvaluator)
    (passenger,) = wiring.test_passengers(cfg, name)
    assert isinstance(passenger, PhrasesToFind)
    assert wiring.test_passengers(cfg, "pictograms_v1_mini_val") == []
