"""Every mistake in a set-up is found before training starts, all at once."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.cache import DatasetInfo, Manifest, RecordWriter, dataset_fingerprint
from ovd_d2.clip import CLIPTeacher
from ovd_d2.engine.checks import check_setup, output_problems, process_problems
from ovd_d2.errors import SetupError
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_BASE_TAG, SHIPPED_TAG
from ovd_d2.vocabulary import Vocabulary
from tests.proposal_stores import random_proposals, write_proposals
from tests.tiny import BASE_NAMES, DIM, NOVEL_NAMES, tiny_config

NAMES = BASE_NAMES + NOVEL_NAMES
ONLINE = "MODEL.VILD.DISTILLATION.ONLINE"
BOX = {"bbox": [1.0, 2.0, 3.0, 3.0], "category_id": 0, "segmentation": [[1, 2, 4, 2, 4, 5, 1, 5]]}
DICTS = [
    {
        "image_id": image_id,
        "file_name": f"tests_checks/{image_id}.png",
        "height": 6,
        "width": 8,
        "annotations": [BOX],
    }
    for image_id in (1, 2)
]


def write_vocabulary(path, names=NAMES, teacher="teacher-a", dim=DIM, novel=None):
    embeddings = torch.nn.functional.normalize(torch.ones(len(names), dim), dim=1)
    novel = torch.tensor([name in NOVEL_NAMES for name in names]) if novel is None else novel
    Vocabulary(list(names), embeddings, novel, teacher=teacher).save(path)


def write_cache(path, ids=(1, 2), teacher="teacher-a", finish=True, dim=DIM):
    manifest = Manifest(
        kind="embeddings",
        dataset=DatasetInfo("tests_checks", dataset_fingerprint(DICTS), len(ids)),
        proposals="p" * 16,
        teacher=teacher,
        embedding_dim=dim,
    )
    with RecordWriter(path, manifest, images=DICTS) as writer:
        for image_id in ids:
            writer.add(
                image_id,
                {
                    "boxes": torch.tensor([[0.0, 0, 5, 5]]),
                    "objectness": torch.tensor([0.5]),
                    "embeddings": torch.nn.functional.normalize(torch.ones(1, dim), dim=1),
                },
            )
        if finish:
            writer.finish()


def write_annotations(dicts):
    """`train.json` in the folder the test is in, in COCO's format."""
    letters = ["f", "f", "f", "r"]
    categories = [
        {"id": k + 1, "name": name, "frequency": letter}
        for k, (name, letter) in enumerate(zip(NAMES, letters, strict=True))
    ]
    images, annotations = [], []
    for one in dicts:
        file_name = one["file_name"].rsplit("/")[-1]
        size = {"height": one["height"], "width": one["width"]}
        images.append({"id": one["image_id"], "file_name": file_name, **size})
        for annotation in one["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": one["image_id"]}
            category = annotation["category_id"] + 1
            extra = {"area": 9, "iscrowd": 0, "category_id": category}
            annotations.append({**annotation, **ids, **extra})
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    Path("train.json").write_text(json.dumps(dataset))


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A set-up without a fault: data set, images, vocabulary and cache agree."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests_checks").mkdir()
    for record in DICTS:
        cv2.imwrite(record["file_name"], np.zeros((6, 8, 3), np.uint8))
    write_annotations(DICTS)
    DatasetCatalog.register("tests_checks", list)
    MetadataCatalog.get("tests_checks").set(
        json_file=str(tmp_path / "train.json"),
        image_root=str(tmp_path / "tests_checks"),
        evaluator_type="coco",
    )
    write_vocabulary(tmp_path / "vocabulary.safetensors")
    write_cache(tmp_path / "cache")
    monkeypatch.undo()  # the config files are found from the repository
    cfg = tiny_config("vild")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tests_checks",)
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    cfg.MODEL.VILD.DISTILLATION.CACHE = str(tmp_path / "cache")
    yield cfg
    DatasetCatalog.remove("tests_checks")
    MetadataCatalog.remove("tests_checks")


def problems_of(cfg, dicts=DICTS, training=True):
    write_annotations(dicts)
    with pytest.raises(SetupError) as caught:
        check_setup(cfg, training=training)
    return caught.value.problems


def test_a_sound_setup_passes(cfg):
    check_setup(cfg, training=True)
    check_setup(cfg, training=False)


def test_cache_of_another_teacher(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", teacher="teacher-b")
    (problem,) = problems_of(cfg)
    assert "teacher-a" in problem and "teacher-b" in problem


def test_cache_that_lacks_images(cfg):
    (problem,) = problems_of(cfg, [*DICTS, {**DICTS[0], "image_id": 77}])
    assert "77" in problem


def test_cache_and_vocabulary_of_another_width(cfg, tmp_path):
    cfg.MODEL.OVD.EMBEDDING_DIM = 16
    problems = problems_of(cfg)
    assert len(problems) == 2
    assert all("16" in problem and str(DIM) in problem for problem in problems)


def test_unfinished_and_missing_cache(cfg, tmp_path):
    write_cache(tmp_path / "other", finish=False)
    cfg.MODEL.VILD.DISTILLATION.CACHE = str(tmp_path / "other")
    assert "unfinished" in problems_of(cfg)[0]
    cfg.MODEL.VILD.DISTILLATION.CACHE = str(tmp_path / "nowhere")
    assert "nowhere" in problems_of(cfg)[0]
    cfg.MODEL.VILD.DISTILLATION.CACHE = ""
    assert "tools/cache.py build" in problems_of(cfg)[0]


def test_vild_text_needs_no_cache(cfg):
    cfg.MODEL.VILD.VARIANT = "vild_text"
    cfg.MODEL.VILD.DISTILLATION.CACHE = ""
    check_setup(cfg, training=True)


def test_vocabulary_in_another_order_is_matched_by_name(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", names=NAMES[::-1])
    check_setup(cfg, training=True)


def test_vocabulary_of_other_names(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", names=[*NAMES[:-1], "zebra"])
    missing, spare, *_ = problems_of(cfg)
    assert f"first '{NAMES[-1]}': build a vocabulary with tools/build_vocabulary.py" in missing
    assert "1 of the 4 names" in spare and "no categories of tests_checks, first 'zebra'" in spare


def test_vocabulary_with_another_split(cfg, tmp_path):
    write_vocabulary(tmp_path / "vocabulary.safetensors", novel=torch.zeros(4, dtype=torch.bool))
    assert "do not agree on which categories are novel" in problems_of(cfg)[0]


def test_number_of_classes(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    assert "set it to 4" in problems_of(cfg)[0]


def test_every_problem_is_listed_at_once(cfg, tmp_path):
    cfg.DATASETS.TEST = ("no_such_set",)
    cfg.MODEL.VILD.VARIANT = "vild_all"
    cfg.MODEL.OVD.NOVEL_TRAINING_LOGITS = "none"
    cfg.MODEL.OVD.CLASSIFY_WITH = "hope"
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "gone.safetensors")
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
    cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS = False
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    problems = problems_of(cfg)
    words = ["no_such_set", "vild_all", "NOVEL_TRAINING_LOGITS", "hope", "gone.safetensors"]
    words += ["CLS_AGNOSTIC_BBOX_REG", "CLS_AGNOSTIC_MASK", "FILTER_NOVEL", "gone.pth"]
    assert len(problems) == len(words)
    assert all(any(word in problem for problem in problems) for word in words)


def test_scores_outside_their_range(cfg):
    cfg.MODEL.OVD.BASE_WEIGHT = 1.5
    cfg.MODEL.OVD.NOVEL_WEIGHT = -0.5
    cfg.MODEL.OVD.OBJECTNESS_WEIGHT = 2.0
    cfg.MODEL.OVD.TEST_TEMPERATURE = -1.0
    problems = problems_of(cfg)
    words = ["BASE_WEIGHT: 1.5", "NOVEL_WEIGHT: -0.5", "OBJECTNESS_WEIGHT: 2.0", "TEST_TEMPERATURE"]
    assert [word for word in words if any(word in p for p in problems)] == words


def test_background_in_words_that_the_vocabulary_lacks(cfg):
    cfg.MODEL.OVD.BACKGROUND = "text"
    assert 'no embedding of "background"' in problems_of(cfg)[0]


def test_unknown_optimizer(cfg):
    cfg.SOLVER.OPTIMIZER = "ADAM"
    assert "'ADAM' is neither SGD nor ADAMW" in problems_of(cfg)[0]


def test_missing_images_are_counted(cfg, tmp_path):
    (tmp_path / DICTS[1]["file_name"]).unlink()
    problems = problems_of(cfg)
    starts = [f"DATASETS.{key} 'tests_checks': " for key in ("TRAIN", "TEST")]
    assert [p.startswith(s) for p, s in zip(problems, starts, strict=True)] == [True, True]
    assert all("1 of 2 images are missing" in p and "tests_checks/2.png" in p for p in problems)


def test_no_base_annotation(cfg):
    novel = {**BOX, "category_id": 3}
    (problem,) = problems_of(cfg, [{**record, "annotations": [novel]} for record in DICTS])
    assert "none of its 3 base categories has an annotation" in problem


def test_pointrends_own_mask_head_is_refused(cfg):
    cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    (problem,) = problems_of(cfg)
    assert "ClassAgnosticPointRendMaskHead" in problem


def test_mixed_precision_without_a_gpu_is_refused_in_training_alone(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    (problem,) = problems_of(cfg)
    assert problem.startswith("SOLVER.AMP: ") and "the device is 'cpu'" in problem
    check_setup(cfg, training=False)
    cfg.MODEL.DEVICE = "cuda:1"
    check_setup(cfg, training=True)


def test_a_closed_vocabulary_cannot_be_classified_by_the_teacher(cfg):
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.OVD.CLASSIFY_WITH = "clip_crops"
    (problem,) = problems_of(cfg, training=False)
    assert "needs MODEL.META_ARCHITECTURE OpenVocabularyRCNN" in problem


def test_what_cannot_be_augmented_at_test_time_is_refused_before_training(cfg):
    cfg.MODEL.OVD.VOCABULARY = ""  # it is of another teacher
    cfg.TEST.AUG.ENABLED = True
    check_setup(cfg, training=False)
    cfg.MODEL.OVD.CLASSIFY_WITH = "clip_crops"
    cfg.MODEL.KEYPOINT_ON = cfg.MODEL.LOAD_PROPOSALS = True
    problems = problems_of(cfg, training=False)
    assert [problem.split()[0] for problem in problems] == [
        "MODEL.OVD.CLASSIFY_WITH",
        "MODEL.KEYPOINT_ON",
        "MODEL.LOAD_PROPOSALS",
    ]
    assert all("does not work with TEST.AUG.ENABLED" in problem for problem in problems)
    cfg.TEST.AUG.ENABLED = False
    check_setup(cfg, training=False)


@pytest.fixture
def absent(tmp_path):
    """LVIS-like, OV-COCO-like and VOC-like sets that are registered and not there."""
    names = ["lvis_v1_absent", "coco_zeroshot_absent", "voc_absent"]
    for name in names:
        DatasetCatalog.register(name, list)
    for name in names[:2]:
        MetadataCatalog.get(name).set(json_file=str(tmp_path / f"{name}.json"))
    MetadataCatalog.get(names[2]).set(
        dirname=str(tmp_path / "VOC2007"), split="test", thing_classes=["cat"]
    )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_absent_annotation_files_are_named_with_the_way_to_get_them(cfg, absent, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    cfg.DATASETS.TRAIN = ("lvis_v1_absent",)
    cfg.DATASETS.TEST = tuple(absent[1:])
    train, *tests = (p for p in problems_of(cfg) if p.startswith("DATASETS"))
    assert "DATASETS.TRAIN: annotation file of data set 'lvis_v1_absent' not found: " in train
    assert "lvis_v1_absent.json (set DETECTRON2_DATASETS, now '/somewhere', to" in train
    assert "get it as datasets/README.md says" in train
    assert "make it with python datasets/prepare_ov_coco.py" in tests[0]
    assert "VOC2007/ImageSets/Main/test.txt" in tests[1]


def test_an_absent_test_set_is_found_before_an_evaluation(cfg, absent):
    cfg.DATASETS.TEST = ("lvis_v1_absent",)
    problems = problems_of(cfg, training=False)
    assert "DATASETS.TEST: annotation file of data set 'lvis_v1_absent'" in problems[0]


def test_evaluation_options_are_looked_at_before_training(cfg):
    cfg.TEST.OVD.ENGINE, cfg.TEST.OVD.PROTOCOL = "warm", "free"
    problems = problems_of(cfg)
    assert [problem.split("'")[1] for problem in problems] == ["warm", "free"]


@pytest.fixture(scope="module")
def fingerprint():
    return CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG).fingerprint


@pytest.fixture
def online(cfg, fingerprint, tmp_path):
    """A sound set-up whose teacher runs inside training."""
    write_vocabulary(tmp_path / "vocabulary.safetensors", teacher=fingerprint, dim=64)
    tensors = {entry["image_id"]: random_proposals(2, 6, 8, seed=0) for entry in DICTS}
    write_proposals(tmp_path / "proposals", DICTS, tensors, dataset="tests_checks")
    cfg.MODEL.OVD.EMBEDDING_DIM = 64
    cfg.MODEL.VILD.DISTILLATION.CACHE = ""
    cfg.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = str(tmp_path / "proposals")
    return cfg


def test_a_sound_online_setup_passes(online):
    check_setup(online, training=True)
    online.MODEL.OVD.TEACHER.ARCHITECTURE = "unknown"
    check_setup(online, training=False)  # evaluation needs neither teacher nor proposals


def test_neither_names_both_ways(online):
    online.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = ""
    (problem,) = problems_of(online)
    assert "DISTILLATION.CACHE is empty" in problem and f"{ONLINE}.PROPOSALS" in problem


def test_cache_and_online_together(online, fingerprint, tmp_path):
    write_cache(tmp_path / "other", teacher=fingerprint, dim=64)
    online.MODEL.VILD.DISTILLATION.CACHE = str(tmp_path / "other")
    (problem,) = problems_of(online)
    assert "empty the one that is not meant" in problem
    assert str(tmp_path / "other") in problem and str(tmp_path / "proposals") in problem


def test_missing_proposals_and_a_store_of_another_kind(online, tmp_path):
    online.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = str(tmp_path / "nowhere")
    (problem,) = problems_of(online)
    assert problem.startswith(f"{ONLINE}.PROPOSALS: ") and "nowhere" in problem
    online.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = str(tmp_path / "cache")
    (problem,) = problems_of(online)
    assert "holds embeddings, expected proposals" in problem


def test_proposals_that_lack_images(online):
    (problem,) = problems_of(online, [*DICTS, {**DICTS[0], "image_id": 77}])
    assert "1 are missing (first ids: [77])" in problem


def test_online_teacher_of_another_vocabulary(online, fingerprint):
    online.MODEL.OVD.TEACHER.PRETRAINED = SHIPPED_BASE_TAG
    (problem,) = problems_of(online)
    assert fingerprint in problem and "share one teacher" in problem


@pytest.mark.parametrize(
    ("architecture", "pretrained", "message"),
    [
        ("ViT-B-33", "openai", "unknown open_clip architecture 'ViT-B-33'"),
        (ARCHITECTURE, "weights/gone.pt", "weights not found: weights/gone.pt"),
        (ARCHITECTURE, "shiped", "neither a local file nor a pretrained tag"),
    ],
)
def test_a_teacher_that_is_not_there(online, architecture, pretrained, message):
    online.MODEL.OVD.TEACHER.ARCHITECTURE = architecture
    online.MODEL.OVD.TEACHER.PRETRAINED = pretrained
    (problem,) = problems_of(online)
    assert problem.startswith("MODEL.OVD.TEACHER: ") and message in problem
    assert f"({ONLINE} needs it)" in problem


def test_every_problem_of_an_online_setup_is_listed_at_once(online, tmp_path):
    online.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = str(tmp_path / "nowhere")
    online.MODEL.VILD.DISTILLATION.ONLINE.RESIZE = "stretch"
    online.MODEL.VILD.DISTILLATION.ONLINE.BATCH_SIZE = 0
    online.MODEL.OVD.TEACHER.PRETRAINED = "shiped"
    online.MODEL.VILD.DISTILLATION.CACHE = str(tmp_path / "gone")
    words = [
        "not meant",
        "gone",
        "nowhere",
        "RESIZE: unknown resize 'stretch'",
        "BATCH_SIZE: 0",
        "shiped",
    ]
    problems = problems_of(online)
    assert len(problems) == len(words)
    assert all(any(word in problem for problem in problems) for word in words)


def test_several_processes_without_gpus(monkeypatch):
    assert process_problems("cpu") == []
    monkeypatch.setattr("ovd_d2.engine.checks.comm.get_world_size", lambda: 2)
    assert process_problems("cuda") == []
    (problem,) = process_problems("cpu")
    assert "'cpu' and there are 2 processes" in problem and "--num-gpus 1" in problem


def test_a_folder_of_results_that_cannot_be(tmp_path, monkeypatch):
    assert output_problems(str(tmp_path / "new" / "deeper")) == []
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/deeper"):
        (problem,) = output_problems(str(tmp_path / folder))
        assert f"{tmp_path / 'file'} is a file: name a folder" in problem
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    (problem,) = output_problems(str(tmp_path / "new"), key="train.output_dir")
    assert f"train.output_dir is '{tmp_path / 'new'}', but {tmp_path} may not be written" in problem
