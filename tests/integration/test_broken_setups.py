"""Thirty broken set-ups through tools/check_setup.py: each is found, with a helpful message."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.vocabulary import Vocabulary
from tests.integration.conftest import TRAIN, VAL

TOOL = str(Path(__file__).parents[2] / "tools" / "check_setup.py")
CONFIG = "configs/pictograms/vild_ensemble.yaml"
SOUND = ["DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{VAL}',)", "MODEL.WEIGHTS", ""]


def check(options=(), config=CONFIG):
    """Runs the tool; its exit message, or None where it found nothing."""
    command = [TOOL, "--config-file", config, *SOUND, *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        try:
            runpy.run_path(TOOL, run_name="__main__")
        except SystemExit as stop:
            return str(stop.code)
    return None


def assert_found(message, found):
    assert found is not None, "nothing was found"
    assert re.search(message, found), found


def test_the_sound_setup_passes(mini, capsys):
    assert check() is None
    assert "Everything needed is there" in capsys.readouterr().out


OPTIONS = {
    "unknown key": (["MODEL.OVD.TEMPRATURE", "0.1"], "TEMPRATURE"),
    "option without value": (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER"),
    "value of another type": (["SOLVER.MAX_ITER", "soon"], "SOLVER.MAX_ITER"),
    "train set unknown": (["DATASETS.TRAIN", "('nobody',)"], r"TRAIN: 'nobody' is not registered"),
    "test set unknown": (["DATASETS.TEST", "('nobody',)"], r"TEST: 'nobody' is not registered"),
    "classes": (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], r"NUM_CLASSES is 7.*set it to \d+"),
    "width": (["MODEL.OVD.EMBEDDING_DIM", "32"], r"EMBEDDING_DIM is 32.*64 wide"),
    "no vocabulary": (["MODEL.OVD.VOCABULARY", ""], r"VOCABULARY is empty.*build_vocabulary"),
    "vocabulary missing": (["MODEL.OVD.VOCABULARY", "gone.safetensors"], r"gone\.safetensors"),
    "no cache": (["MODEL.VILD.DISTILLATION.CACHE", ""], r"CACHE is empty"),
    "cache missing": (["MODEL.VILD.DISTILLATION.CACHE", "gone"], r"CACHE: no record store in gone"),
    "variant": (["MODEL.VILD.VARIANT", "vild_max"], r"VARIANT: 'vild_max' is not one of vild_text"),
    "temperature": (["MODEL.OVD.TEMPERATURE", "0.0"], r"TEMPERATURE 0\.0 must be positive"),
    "base weight": (["MODEL.OVD.BASE_WEIGHT", "2.0"], r"BASE_WEIGHT: 2\.0 is not between 0 and 1"),
    "novel logits": (["MODEL.OVD.NOVEL_TRAINING_LOGITS", "drop"], r"'drop' is not one of"),
    "classify with": (["MODEL.OVD.CLASSIFY_WITH", "eyes"], r"CLASSIFY_WITH: 'eyes' is not one of"),
    "box regression": (["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"], r"BBOX_REG must"),
    "masks": (["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False"], r"CLS_AGNOSTIC_MASK must"),
    "novel boxes": (["DATALOADER.FILTER_NOVEL_ANNOTATIONS", "False"], r"novel boxes are not for"),
    "optimiser": (["SOLVER.OPTIMIZER", "LION"], r"'LION' is neither SGD nor ADAMW"),
    "multiplier": (["SOLVER.LR_MULTIPLIERS", "['backbone.', 0.3]"], r"are not pairs"),
    "best checkpoint": (["TEST.OVD.BEST_CHECKPOINT", "bbox/AP"], r"TEST\.EVAL_PERIOD is 0"),
    "weights": (["MODEL.WEIGHTS", "gone.pth"], r"MODEL\.WEIGHTS: no file at gone\.pth"),
    "point rend": (["MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"], r"ClassAgnosticPointRend"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_wrong_option(mini, options, message):
    assert_found(message, check(options))


def test_a_config_that_is_not_there(mini):
    assert "nowhere.yaml" in check(config="nowhere.yaml")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _without_a_name(path):
    right = Vocabulary.load(path)
    right.select(right.names[1:]).save(path)


def _other_teacher(path):
    right = Vocabulary.load(path)
    Vocabulary(right.names, right.embeddings, right.novel, teacher="somebody-else").save(path)


VOCABULARIES = {
    "truncated": (_truncate, "broken.safetensors"),
    "a name is missing": (_without_a_name, r"1 of the 80 categories of .* first 'anchor': build"),
    "another teacher than the cache's": (_other_teacher, r"expected 'somebody-else'"),
}


@pytest.mark.parametrize(("damage", "message"), VOCABULARIES.values(), ids=VOCABULARIES.keys())
def test_a_wrong_vocabulary(mini, tmp_path, damage, message):
    path = tmp_path / "broken.safetensors"
    shutil.copy(mini.vocabulary, path)
    damage(path)
    assert_found(message, check(["MODEL.OVD.VOCABULARY", str(path)]))


def _truncate_a_shard(folder):
    _truncate(sorted(folder.glob("shard-*"))[0])


def _delete_a_shard(folder):
    sorted(folder.glob("shard-*"))[0].unlink()


def _empty_manifest(folder):
    (folder / "manifest.json").write_text("")


CACHES = {
    "truncated shard": (_truncate_a_shard, r"CACHE: .*shard-"),
    "deleted shard": (_delete_a_shard, r"CACHE: .*shard-.*missing"),
    "empty manifest": (_empty_manifest, r"CACHE: .*manifest\.json is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), CACHES.values(), ids=CACHES.keys())
def test_a_damaged_cache(mini, tmp_path, damage, message):
    shutil.copytree(mini.cache, tmp_path / "cache")
    damage(tmp_path / "cache")
    assert_found(message, check(["MODEL.VILD.DISTILLATION.CACHE", str(tmp_path / "cache")]))


@pytest.fixture
def breakable():
    """Yields the path of a training image or of the JSON; what was there comes back."""
    saved = {}

    def path_of(what):
        json_file = Path(MetadataCatalog.get(TRAIN).json_file)
        path = json_file if what == "json" else Path(DatasetCatalog.get(TRAIN)[0]["file_name"])
        saved[path] = path.read_bytes()
        return path

    yield path_of
    for path, content in saved.items():
        path.write_bytes(content)


FILES = {
    "image missing": ("image", Path.unlink, r"1 of \d+ images are missing"),
    "json missing": ("json", Path.unlink, r"train\.json"),
    "json truncated": ("json", _truncate, r"train\.json"),
}


@pytest.mark.parametrize(("what", "damage", "message"), FILES.values(), ids=FILES.keys())
def test_a_damaged_data_set(mini, breakable, what, damage, message):
    damage(breakable(what))
    assert_found(message, check())
