"""1,203 names of LVIS in many captions, by both protocols, with no vocabulary file."""

import json

import pytest
import torch

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import vocabulary_of
from ovd_d2.engine.run import load_config
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.evaluation import build_evaluator
from ovd_d2.projects.glip.model import GLIP
from tests.mini_lvis import mini_lvis

CONFIG = "projects/GLIP/configs/pictograms/glip_no_fusion.yaml"
SET = "lvis_v1_minival"


@pytest.fixture(scope="module")
def lvis(tmp_path_factory):
    with mini_lvis(tmp_path_factory.mktemp("lvis")) as found:
        yield found


def config(tmp_path, *options):
    small = (
        "MODEL.GLIP.BLOCKS",
        1,
        "MODEL.GLIP.BERT.LAYERS",
        1,
        "MODEL.GLIP.CAPTIONS_PER_PASS",
        16,
    )
    plain = ("MODEL.WEIGHTS", "", "MODEL.GLIP.BERT.PRETRAINED", "", "MODEL.OVD.VOCABULARY", "")
    sizes = ("INPUT.MIN_SIZE_TEST", 40, "INPUT.MAX_SIZE_TEST", 80, "DATALOADER.NUM_WORKERS", 0)
    sets = ("DATASETS.TEST", f"('{SET}',)", "TEST.OVD.FAILURES", 0, "OUTPUT_DIR", tmp_path)
    return load_config(CONFIG, [*map(str, (*small, *plain, *sizes, *sets)), *options])


def test_minival_under_fixed_ap(lvis, tmp_path):
    cfg = config(tmp_path, "TEST.OVD.PROTOCOL", "fixed", "TEST.DETECTIONS_PER_IMAGE", "1000")
    torch.manual_seed(0)
    model = GLIP(cfg).eval()
    results = OpenVocabularyTrainer.test(cfg, model)
    assert model.vocabulary is None  # the names were the data set's
    assert results["bbox"]["APr"] >= 0 and "segm" not in results
    written = json.loads((tmp_path / "inference/results.json").read_text())["evaluation"][SET]
    assert "fixed" in written["protocol"]
    with vocabulary_of(SET, model):
        questions = model.questions_of(model.vocabulary)
    assert written["captions"] == str(len(questions)) and len(questions) > 1
    assert written["names per caption"] == "as many as 256 tokens hold"
    first, *_ = get_categories(SET).names
    assert written["first caption"].startswith(f"{first.split('_')[0]}")
    assert len(written["first caption"]) == 103 and written["first caption"].endswith("...")
    file = tmp_path / f"inference/{SET}/lvis_instances_results.json"
    assert len({one["category_id"] for one in json.loads(file.read_text())}) > 100
    federated = build_evaluator(config(tmp_path), SET)
    assert "federated" in federated.description["protocol"]


def test_captions_of_the_public_code(lvis, tmp_path):
    cfg = config(tmp_path, "MODEL.GLIP.NAMES_PER_CAPTION", "12")  # 40 fit with BERT's pieces
    model = GLIP(cfg)
    settings = build_evaluator(cfg, SET).description
    assert (settings["names per caption"], settings["captions"]) == ("12", "101")
    with vocabulary_of(SET, model):
        sizes = [len(one.labels) for one in model.questions_of(model.vocabulary)]
    assert sizes == [12] * 100 + [3]
