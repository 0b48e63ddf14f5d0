"""Every mistake in a set-up is found before training starts, all at once."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.cache import DatasetInfo, Manifest, RecordWriter
from ovd_d2.engine.checks import check_setup
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import BASE_NAMES, DIM, NOVEL_NAMES, random_units, tiny_config

NAMES = BASE_NAMES + NOVEL_NAMES
DICTS = [{"image_id": 1}, {"image_id": 2}]


def write_vocabulary(path, names=NAMES, teacher="teacher-a", dim=DIM, novel=None):
    embeddings = torch.nn.functional.normalize(torch.ones(len(names), dim), dim=1)
    novel = torch.tensor([name in NOVEL_NAMES for name in names]) if novel is None else novel
    Vocabulary(list(names), embeddings, novel, teacher=teacher).save(path)


def write_cache(path, ids=(1, 2), teacher="teacher-a", finish=True):
    manifest = Manifest(
        kind="embeddings",
        dataset=DatasetInfo("tests_checks", "0" * 16, len(ids)),
        proposals="p" * 16,
        teacher=teacher,
        embedding_dim=DIM,
    )
    with RecordWriter(path, manifest) as writer:
        for image_id in ids:
            writer.add(
                image_id,
                {
                    "boxes": torch.tensor([[0.0, 0, 5, 5]]),
                    "objectness": torch.tensor([0.5]),
                    "embeddings": random_units(1),
                },
            )
        if finish:
            writer.finish()


@pytest.fixture
def cfg(tmp_path):
    """A set-up without a fault: data set, vocabulary and cache agree."""
    path = tmp_path / "train.json"
    letters = ["f", "f", "f", "r"]
    categories = [
        {"id": k + 1, "name": name, "frequency": letter}
        for k, (name, letter) in enumerate(zip(NAMES, letters, strict=True))
    ]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    DatasetCatalog.register("tests_checks", list)
    MetadataCatalog.get("tests_checks").set(json_file=str(path), evaluator_type="lvis")
    write_vocabulary(tmp_path / "vocabulary.safetensors")
    write_cache(tmp_path / "cache")
    cfg = tiny_config("vild")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tests_checks",)
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    cfg.MODEL.OVD.DISTILLATION.CACHE = str(tmp_path / "cache")
    yield cfg
    DatasetCatalog.remove("tests_checks")
    MetadataCatalog.remove("tests_checks")


def problems_of(cfg, dicts=DICTS):
    with pytest.raises(SetupError) as caught:
        check_setup(cfg, dicts)
    return caught.value.problems


def test_a_sound_setup_passes(cfg):
    check_setup(cfg, DICTS)
    check_setup(cfg)


def test_cache_of_another_teacher(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", teacher="teacher-b")
    (problem,) = problems_of(cfg)
    assert "teacher-a" in problem and "teacher-b" in problem


def test_cache_that_lacks_images(cfg):
    (problem,) = problems_of(cfg, [*DICTS, {"image_id": 77}])
    assert "77" in problem


def test_cache_and_vocabulary_of_another_width(cfg, tmp_path):
    cfg.MODEL.OVD.EMBEDDING_DIM = 16
    problems = problems_of(cfg)
    assert len(problems) == 2
    assert all("16" in problem and str(DIM) in problem for problem in problems)


def test_unfinished_and_missing_cache(cfg, tmp_path):
    write_cache(tmp_path / "other", finish=False)
    cfg.MODEL.OVD.DISTILLATION.CACHE = str(tmp_path / "other")
    assert "unfinished" in problems_of(cfg)[0]
    cfg.MODEL.OVD.DISTILLATION.CACHE = str(tmp_path / "nowhere")
    assert "nowhere" in problems_of(cfg)[0]
    cfg.MODEL.OVD.DISTILLATION.CACHE = ""
    assert "tools/build_cache.py" in problems_of(cfg)[0]


def test_vild_text_needs_no_cache(cfg):
    cfg.MODEL.OVD.VARIANT = "vild_text"
    cfg.MODEL.OVD.DISTILLATION.CACHE = ""
    check_setup(cfg, DICTS)


def test_vocabulary_in_another_order(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", names=NAMES[::-1])
    assert "order" in problems_of(cfg)[0]


def test_vocabulary_with_another_split(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", novel=torch.zeros(4, dtype=torch.bool))
    assert "0 names novel" in problems_of(cfg)[0]


def test_number_of_classes(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    assert "set it to 4" in problems_of(cfg)[0]


def test_every_problem_is_listed_at_once(cfg, tmp_path):
    cfg.DATASETS.TEST = ("no_such_set",)
    cfg.MODEL.OVD.VARIANT = "vild_all"
    cfg.MODEL.OVD.NOVEL_TRAINING_LOGITS = "none"
    cfg.MODEL.OVD.CLASSIFY_WITH = "hope"
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "gone.safetensors")
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    problems = problems_of(cfg)
    words = ["no_such_set", "vild_all", "NOVEL_TRAINING_LOGITS", "hope", "gone.safetensors"]
    words += ["CLS_AGNOSTIC_BBOX_REG", "CLS_AGNOSTIC_MASK", "gone.pth"]
    assert len(problems) == len(words)
    assert all(any(word in problem for problem in problems) for word in words)


def test_pointrends_own_mask_head_is_refused(cfg):
    cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    (problem,) = problems_of(cfg)
    assert "ClassAgnosticPointRendMaskHead" in problem
