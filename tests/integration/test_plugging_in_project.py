"""docs/plugging_in: a project on Detectron2's DefaultTrainer, before and after the five lines."""

import argparse
import difflib
import json
import logging
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import build_vocabulary, novel_flags
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.vocabulary import Categories, Vocabulary
from tests.integration.conftest import SET, read_results

FOLDER = Path(__file__).parents[2] / "docs" / "plugging_in"
BEFORE, AFTER = FOLDER / "project.py", FOLDER / "project_with_words.py"


def as_coco(lvis):
    """The mini Pictograms as a COCO file: no frequencies, nothing that says what is novel."""
    categories = [{"id": c["id"], "name": c["name"]} for c in lvis["categories"]]
    annotations = [{**a, "iscrowd": 0} for a in lvis["annotations"]]
    return {**lvis, "categories": categories, "annotations": annotations}


@pytest.fixture(scope="module")
def shop(mini):
    folder = mini.folder / "shop"
    shutil.copytree(mini.folder / SET, folder)
    for split in ("train", "val"):
        data = as_coco(json.loads((folder / f"{SET}_{split}.json").read_text()))
        (folder / f"{split}.json").write_text(json.dumps(data))
    names = [category["name"] for category in data["categories"]]
    novel = ["snowman", "sun"]
    (folder / "base.txt").write_text("\n".join(name for name in names if name not in novel))
    build_vocabulary(
        Categories(names, novel_flags(names, novel)),
        CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG),
        prompts="single",
    ).save(folder / "vocabulary.safetensors")
    return folder


def run(script, output, *options, eval_only=False):
    """The script's `main`, with the data sets it registers taken away afterwards."""
    quick = (
        "SEED",
        1,
        "SOLVER.MAX_ITER",
        2,
        "DATALOADER.NUM_WORKERS",
        0,
        "OUTPUT_DIR",
        str(output),
    )
    config_file = str(script.with_suffix(".yaml"))
    args = argparse.Namespace(
        config_file=config_file, opts=[*quick, *options], resume=False, eval_only=eval_only
    )
    try:
        return runpy.run_path(str(script))["main"](args)
    finally:
        for name in ("shop_train", "shop_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def with_three_names(state):
    """A state dict whose vocabulary is cut to its first three names."""
    key = "roi_heads.box_predictor.classifier.vocabulary"
    vocabulary = Vocabulary.from_bytes(state[key].numpy().tobytes())
    content = vocabulary.select(vocabulary.names[:3]).to_bytes()
    return {**state, key: torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def test_five_lines_are_added():
    changes = list(difflib.ndiff(BEFORE.read_text().splitlines(), AFTER.read_text().splitlines()))
    added, removed = (
        [line[2:].strip() for line in changes if line.startswith(sign) and line[2:].strip()]
        for sign in ("+ ", "- ")
    )
    assert len(added) == 5
    assert removed == [
        "DefaultTrainer,",
        "from detectron2.evaluation import COCOEvaluator",
        "class Trainer(DefaultTrainer):",
        "@classmethod",
        "def build_evaluator(cls, cfg, dataset_name):",
        "return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)",
    ]


def test_the_project_learns_words_and_goes_on_from_its_own_weights(shop, tmp_path):
    plain, words = tmp_path / "plain", tmp_path / "words"
    run(BEFORE, plain)
    run(AFTER, words, "MODEL.WEIGHTS", str(plain / "model_final.pth"), "SOLVER.BASE_LR", 1e-12)
    before, after = weights(plain), weights(words)
    for name in ("backbone.bottom_up.res2.0.conv1.weight", "roi_heads.box_head.fc1.weight"):
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6)
    stored = after["roi_heads.box_predictor.classifier.vocabulary"]
    vocabulary = Vocabulary.from_bytes(stored.numpy().tobytes())
    assert (len(vocabulary), vocabulary.embedding_dim, int(vocabulary.novel.sum())) == (80, 64, 2)
    assert {"AP", "AP50_base", "AP50_novel"} <= set(read_results(words)["bbox"])


def test_the_project_trains_and_evaluates_its_words(shop, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ovd_d2")
    run(AFTER, tmp_path)
    assert "annotations of novel categories: they are never trained on" in caplog.text
    found = tmp_path / "inference" / "shop_val" / "coco_instances_results.json"
    first = json.loads(found.read_text())
    assert len(first) > 0
    run(AFTER, tmp_path, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), eval_only=True)
    assert json.loads(found.read_text()) == first


def test_the_vocabulary_of_the_config_is_evaluated_not_that_of_the_checkpoint(shop, tmp_path):
    run(AFTER, tmp_path)
    torch.save({"model": with_three_names(weights(tmp_path))}, tmp_path / "three.pth")
    run(AFTER, tmp_path, "MODEL.WEIGHTS", str(tmp_path / "three.pth"), eval_only=True)
    found = tmp_path / "inference" / "shop_val" / "coco_instances_results.json"
    assert max(one["category_id"] for one in json.loads(found.read_text())) > 3
