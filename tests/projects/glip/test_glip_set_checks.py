"""What is wrong with the data sets of a config is listed before a run starts, all at once."""

import json

import pytest
from detectron2.data import DatasetCatalog

from ovd_d2.data.categories import get_categories
from ovd_d2.data.own import register_own
from ovd_d2.engine.checks import check_setup
from ovd_d2.evaluation import build_evaluator
from ovd_d2.projects.glip import set_checks, wiring
from ovd_d2.projects.glip.evaluation.flickr_recall import PhraseRecallEvaluator
from ovd_d2.systems import SetupContext, system_of
from ovd_d2.vocabulary import Categories
from tests.integration.conftest import _drawn_once, mini  # noqa: F401
from tests.projects.glip.captioned import (  # noqa: F401
    catalog,
    content,
    mapper_with,
    register,
    write,
)
from tests.projects.glip.test_glip_wiring import CAPTIONS, NAMES, VAL, cfg  # noqa: F401


def context(training=True):
    return SetupContext(training=training, embedding_dim=1, training_images=[{}])


def test_sound_data_have_no_problems(cfg):  # noqa: F811
    assert list(wiring.key_problems(cfg)) == [] and list(set_checks.problems(cfg, context())) == []
    assert system_of(cfg).free_categories


def test_everything_is_listed_at_once(cfg, tmp_path, catalog):  # noqa: F811
    table = content()
    register("glip_bad", tmp_path, table)
    table["annotations"][0]["tokens_positive"] = [[0, 99]]
    table["images"][1]["caption"] = 7
    (tmp_path / "captions.json").write_text(json.dumps(table), encoding="utf-8")
    cfg.MODEL.GLIP.TOKENIZER = str(tmp_path / "vocab.txt")
    cfg.MODEL.WEIGHTS, cfg.MODEL.GLIP.BERT.PRETRAINED = "", "gone/bert"
    cfg.MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS = (NAMES, CAPTIONS)
    cfg.DATASETS.TRAIN = (NAMES, CAPTIONS, "glip_bad")
    found = list(set_checks.problems(cfg, context()))
    assert len(found) == 5
    assert found[0].startswith("MODEL.GLIP.TOKENIZER: tokenizer: no file at")
    assert found[1].startswith("MODEL.GLIP.BERT.PRETRAINED 'gone/bert': ")
    assert found[2] == f"{wiring.KEY}.NEGATIVE_CAPTIONS: '{NAMES}' has no captions with spans"
    assert "image 1: tokens_positive" in found[3] and "image 2: its 'caption' is 7" in found[4]
    assert len(list(set_checks.problems(cfg, context(training=False)))) == 2


def test_too_many_names_for_one_prompt(cfg):  # noqa: F811
    cfg.MODEL.GLIP.PROMPTS.NAMES, cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = "all", False
    cfg.MODEL.GLIP.TOKENIZER = "pictograms"
    cfg.DATASETS.TRAIN = ("lvis_v1_train",)
    (problem,) = set_checks.problems(cfg, context())
    assert problem.startswith(f"{wiring.KEY}.NAMES all, 'lvis_v1_train': its 1203 names have")


@pytest.mark.parametrize(("names", "shuffle"), [("sampled", True), ("all", True)])
def test_names_that_move_teach_an_offset_of_places_nothing(cfg, names, shuffle):  # noqa: F811
    # the tuning of Pictograms was such, and its AP fell below the teacher's
    prompt_tuning(cfg)
    cfg.MODEL.GLIP.PROMPTS.NAMES, cfg.MODEL.GLIP.PROMPTS.SHUFFLE = names, shuffle
    (problem,) = set_checks.problems(cfg, context())
    assert f"NAMES {names}, SHUFFLE {shuffle}" in problem and "SHUFFLE False" in problem
    assert list(set_checks.problems(cfg, context(training=False))) == []


def prompt_tuning(cfg):  # noqa: F811
    """One that is sound."""
    cfg.MODEL.GLIP.TUNING, cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = "prompt", False
    cfg.MODEL.GLIP.PROMPTS.NAMES, cfg.MODEL.GLIP.PROMPTS.SHUFFLE = "all", False
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAMES,), (VAL,)
    cfg.MODEL.WEIGHTS = "trained.pth"
    assert list(set_checks.problems(cfg, context())) == []


def test_captions_of_other_places_are_refused_in_prompt_tuning(cfg, monkeypatch):  # noqa: F811
    prompt_tuning(cfg)
    cfg.DATASETS.TRAIN = (NAMES, CAPTIONS)
    cfg.DATASETS.TEST = (VAL, "coco_2017_val")  # there is no file
    names = get_categories(VAL).names
    turned = {NAMES: Categories(names, [False] * 80), VAL: Categories(names[::-1], [False] * 80)}
    monkeypatch.setattr(set_checks, "get_categories", turned.__getitem__)
    cfg.MODEL.GLIP.NAMES_PER_CAPTION = 3
    first, second, third = set_checks.problems(cfg, context())
    assert f"each image of '{CAPTIONS}'" in first
    assert f"'{VAL}' has other names than '{NAMES}'" in second
    assert third.startswith("MODEL.GLIP.NAMES_PER_CAPTION 3")


@pytest.mark.parametrize("names", ["all", "public"])
def test_no_novel_names_without_their_boxes(cfg, names):  # noqa: F811
    # "public" went through, and taught that an image does not show what it shows
    cfg.MODEL.GLIP.PROMPTS.NAMES = names
    (problem,) = set_checks.problems(cfg, context())
    assert problem.startswith(f"{wiring.KEY}.NAMES {names}, '{NAMES}'")
    assert "novel names, whose boxes are left out" in problem
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False
    assert list(set_checks.problems(cfg, context())) == []


@pytest.mark.parametrize("mode", ["linear", "prompt"])
def test_noise_is_not_tuned(cfg, mode):  # noqa: F811
    prompt_tuning(cfg)
    cfg.MODEL.GLIP.TUNING, cfg.MODEL.WEIGHTS = mode, ""
    (problem,) = set_checks.problems(cfg, context())
    assert problem.startswith(f"MODEL.WEIGHTS is empty, but MODEL.GLIP.TUNING {mode} keeps")
    assert list(set_checks.problems(cfg, context(training=False))) == []
    cfg.MODEL.GLIP.TUNING = "full"
    assert list(set_checks.problems(cfg, context())) == []


def test_files_that_are_at_fault_are_not_named_twice(cfg, tmp_path, catalog):  # noqa: F811
    table = content()
    for one in table["annotations"]:
        del one["tokens_positive"]
    path = register("glip_broken", tmp_path, table)
    path.write_text("[")
    cfg.DATASETS.TRAIN = ("coco_2017_train", "nowhere", "goldg_mixed_train", "glip_broken")
    cfg.MODEL.GLIP.TUNING, cfg.MODEL.WEIGHTS = "prompt", "trained.pth"
    for problem in set_checks.problems(cfg, context()):
        assert "glip_broken" not in problem and "coco_2017" not in problem


@pytest.mark.parametrize("training", [True, False])
def test_phrases_that_are_to_be_found(cfg, tmp_path, catalog, training):  # noqa: F811
    table = content()
    table["images"][1]["caption"] += " of" * 300
    register("glip_phrases", tmp_path, table, evaluator_type="phrase_grounding")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAMES,), ("glip_phrases",)
    found = context(training)
    assert list(set_checks.problems(cfg, found)) == []
    (notice,) = found.notices
    assert "'glip_phrases': 1 captions have more than 256 tokens" in notice
    cfg.MODEL.GLIP.ENTITIES = str(tmp_path / "gone")
    (problem,) = set_checks.problems(cfg, context(training))
    assert problem.startswith("MODEL.GLIP.ENTITIES: no folder at")
    table["annotations"][0]["tokens_positive"] = [[0, 99]]
    register("glip_wrong", tmp_path, table, evaluator_type="phrase_grounding")
    cfg.DATASETS.TEST = ("glip_wrong",)
    (problem,) = set_checks.problems(cfg, context(training))
    assert "image 1: tokens_positive of its annotation 0 is wrong" in problem


def test_names_that_do_not_fit_into_the_captions_of_an_evaluation(cfg):  # noqa: F811
    cfg.MODEL.GLIP.NAMES_PER_CAPTION = 70
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAMES,), ("lvis_v1_val", VAL, "coco_2017_val")
    cfg.MODEL.OVD.VOCABULARY = ""
    for training in (True, False):
        (problem,) = set_checks.problems(cfg, context(training))
        assert problem.startswith("'lvis_v1_val', MODEL.GLIP.NAMES_PER_CAPTION 70: names 0 to 69")
        assert problem.endswith("more than 256: take fewer, or 0: as many as fit")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("lvis_v1_train",), ()
    (problem,) = set_checks.problems(cfg, context())
    assert problem.startswith("'DATASETS.TRAIN', MODEL.GLIP.NAMES_PER_CAPTION 70")
    cfg.MODEL.GLIP.NAMES_PER_CAPTION = 0
    assert list(set_checks.problems(cfg, context())) == []


def test_other_words_for_what_no_set_has(cfg):  # noqa: F811
    cfg.DATASETS.TEST = (VAL,)
    known = get_categories(VAL).names[0]
    cfg.MODEL.GLIP.PROMPTS.PHRASES = ((known, "", known, ""), (f"{known}s", "a ", "thing", ""))
    (problem,) = set_checks.problems(cfg, context())
    assert problem == (
        f"{wiring.KEY}.PHRASES: no set of DATASETS.TRAIN and DATASETS.TEST has a category "
        f"'{known}s'; did you mean '{known}'?"
    )
    cfg.DATASETS.TEST = (VAL, "coco_2017_val")  # its file is not there: it may have the category
    assert list(set_checks.problems(cfg, context())) == []
    cfg.MODEL.GLIP.PROMPTS.PHRASES = (7, ("hand",))  # a problem of the key
    assert list(set_checks.problems(cfg, context())) == []
    assert len(list(wiring.key_problems(cfg))) == 2


def test_a_grounding_set_of_ones_own_is_evaluated_by_its_phrases(cfg, tmp_path, catalog):  # noqa: F811
    table = content()
    del table["annotations"][3]  # it has no area
    write(tmp_path, table)
    lines = "json_file: captions.json, image_root: ."
    kind = "evaluator_type: phrase_grounding"
    own = tmp_path / "own.yaml"
    own.write_text(f"glip_names: {{{lines}}}\nglip_own: {{{lines}, {kind}}}\n")
    register_own(own)
    cfg.MODEL.OVD.VOCABULARY = ""
    cfg.DATASETS.TEST = ("glip_names",)
    (notice,) = check_setup(cfg, training=False, progress=False)
    assert notice.startswith("DATASETS.TEST 'glip_names' has captions with spans, but its images")
    assert f"set evaluator_type phrase_grounding in {own}" in notice
    cfg.DATASETS.TEST = ("glip_own",)
    assert check_setup(cfg, training=False, progress=False) == []
    assert isinstance(build_evaluator(cfg, "glip_own", str(tmp_path)), PhraseRecallEvaluator)
    (passenger,) = wiring.test_passengers(cfg, "glip_own")
    question = mapper_with(passenger, is_train=False)(DatasetCatalog.get("glip_own")[0])
    assert question["positive_map"].shape[0] == 2
