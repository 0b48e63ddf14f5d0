"""Our heads, loader and mapper in projects that need more than boxes: one training step each."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

from ovd_d2.engine.build import build_test_loader, build_train_loader, get_base_dataset_dicts
from ovd_d2.errors import SetupError
from tests.catalog import forget
from tests.tiny import BASE_NAMES, NOVEL_NAMES, tiny_config, tiny_vocabulary

NAME, SIZE = "tests_project", 64
STUFF = 3  # categories of sem_seg


@pytest.fixture
def project(tmp_path):
    """Two images with an object each, one of a base and one of the novel category, and sem_seg."""
    rng = np.random.default_rng(0)
    records = []
    for image_id, category in ((1, 0), (2, 3)):
        image, stuff = tmp_path / f"{image_id}.png", tmp_path / f"{image_id}_stuff.png"
        cv2.imwrite(str(image), rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[:, SIZE // 2 :] = image_id  # the right half
        cv2.imwrite(str(stuff), pixels)
        polygon = [8.0, 8.0, 40.0, 8.0, 40.0, 40.0, 8.0, 40.0]
        annotation = {"bbox": [8.0, 8.0, 40.0, 40.0], "bbox_mode": BoxMode.XYXY_ABS}
        annotation |= {"category_id": category, "segmentation": [polygon], "iscrowd": 0}
        record = {"file_name": str(image), "sem_seg_file_name": str(stuff), "image_id": image_id}
        record |= {"height": SIZE, "width": SIZE, "annotations": [annotation]}
        records.append(record)
    DatasetCatalog.register(NAME, lambda: [dict(record) for record in records])
    names = {"thing_classes": BASE_NAMES + NOVEL_NAMES, "base_classes": BASE_NAMES}
    MetadataCatalog.get(NAME).set(evaluator_type="coco", **names)
    yield tmp_path
    forget(NAME)


def project_config():
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (SIZE,), SIZE
    return cfg


def training_step(cfg, batch):
    """The losses of one step, after which every trained parameter has a finite gradient."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.roi_heads.set_vocabulary(tiny_vocabulary())
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained)
    return losses


@pytest.mark.parametrize("jitter", [False, True])
def test_panoptic_fpn_trains_by_words_with_its_sem_seg(project, jitter):
    cfg = project_config()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = STUFF
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    if jitter:  # half the image's size in a square of its size: the rest is padding
        cfg.INPUT.LSJ.ENABLED, cfg.INPUT.LSJ.SIZE = True, SIZE
        cfg.INPUT.LSJ.MIN_SCALE = cfg.INPUT.LSJ.MAX_SCALE = 0.5
    batch = next(iter(build_train_loader(cfg)))
    for record in batch:
        assert record["sem_seg"].shape == record["image"].shape[1:] == (SIZE, SIZE)
        assert record["sem_seg"].dtype == torch.int64
        assert "sem_seg_file_name" not in record
        labels = set(record["sem_seg"].unique().tolist())
        padding = {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE} if jitter else set()
        assert labels == {0, record["image_id"], *padding}
    losses = training_step(cfg, batch)
    assert {"loss_sem_seg", "loss_cls", "loss_mask"} <= losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_sem_seg"] > 0


def write_proposals(path, count):
    boxes = np.array([[8.0, 8, 40, 40], [0, 0, 20, 20], [30, 30, 60, 60]], np.float32)[:count]
    logits = np.linspace(-1, 1, count, dtype=np.float32)
    stored = {"ids": [1, 2], "boxes": [boxes] * 2, "objectness_logits": [logits] * 2}
    path.write_bytes(pickle.dumps({**stored, "bbox_mode": BoxMode.XYXY_ABS}))
    return str(path)


def stored_config(file):
    """Fast R-CNN: no RPN, proposals from a file."""
    cfg = project_config()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.LOAD_PROPOSALS = "PrecomputedProposals", True
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (file,)
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def test_stored_proposals_train_and_detect(project):
    cfg = stored_config(write_proposals(project / "proposals.pkl", 3))
    batch = next(iter(build_train_loader(cfg)))
    for record in batch:
        proposals = record["proposals"]
        assert proposals.proposal_boxes.tensor.tolist() == [[30, 30, 60, 60], [0, 0, 20, 20]]
        assert proposals.objectness_logits.tolist() == [1, 0]
    losses = training_step(cfg, batch)
    assert "loss_cls" in losses and "loss_rpn_cls" not in losses
    model = build_model(cfg).eval()
    model.set_vocabulary(tiny_vocabulary())
    one = next(iter(build_test_loader(cfg, NAME)))
    assert len(one[0]["proposals"]) == 3
    with torch.no_grad():
        assert "pred_masks" in model(one)[0]["instances"].get_fields()


def test_one_file_of_proposals_per_data_set(project):
    cfg = stored_config(write_proposals(project / "proposals.pkl", 1))
    cfg.DATASETS.PROPOSAL_FILES_TRAIN *= 2
    with pytest.raises(SetupError, match="2 files for 1 data sets"):
        build_train_loader(cfg)
    assert len(get_base_dataset_dicts(NAME)) == 2
