import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from ovd_d2.cache import (
    CacheError,
    DatasetInfo,
    Manifest,
    ProposalStore,
    RecordWriter,
    dataset_fingerprint,
)
from ovd_d2.engine.proposals import extract_proposals, proposal_manifest, to_original_image
from tests.processes import run_ranks
from tests.tiny import tiny_config


def make_proposals(boxes, size):
    proposals = Instances(size)
    proposals.proposal_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    proposals.objectness_logits = torch.linspace(2, -2, len(boxes))
    return proposals


def test_boxes_go_back_to_the_original_image():
    proposals = make_proposals([[10.0, 20, 30, 40], [90, 0, 120, 50]], (50, 100))
    boxes, objectness = to_original_image(proposals, 100, 200, "logit")
    assert boxes.tolist() == [[20, 40, 60, 80], [180, 0, 200, 100]]  # the second one is clipped
    torch.testing.assert_close(objectness, torch.tensor([2.0, -2.0]).sigmoid())


def test_probabilities_stay_as_they_are():
    proposals = make_proposals([[10.0, 20, 30, 40], [90, 0, 120, 50]], (50, 100))
    proposals.objectness_logits = torch.tensor([0.75, 0.25])
    assert to_original_image(proposals, 50, 100, "probability")[1].tolist() == [0.75, 0.25]


def test_boxes_that_are_empty_there_are_dropped_and_none_is_fine():
    outside = make_proposals([[100.0, 0, 120, 50], [0, 0, 10, 10]], (50, 100))
    boxes, objectness = to_original_image(outside, 50, 100, "logit")
    assert boxes.tolist() == [[0, 0, 10, 10]]
    assert objectness.shape == (1,)
    assert to_original_image(make_proposals([], (50, 100)), 50, 100, "logit")[0].shape == (0, 4)


@pytest.fixture
def scenes(tmp_path):
    records = []
    for image_id, (height, width) in enumerate([(64, 64), (40, 90), (33, 57)], 1):
        path = tmp_path / f"{image_id}.png"
        rng = np.random.default_rng(image_id)
        cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        size = {"height": height, "width": width}
        records.append({"file_name": str(path), "image_id": image_id, **size})
    return records


@pytest.fixture
def cfg(tmp_path):
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 100
    cfg.DATALOADER.NUM_WORKERS = 0
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"any weights")
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def test_extraction_resumes_and_ends_with_all_images(cfg, scenes, tmp_path):
    torch.manual_seed(0)
    model = build_model(cfg)
    manifest = proposal_manifest(cfg, "tests", scenes)
    options = {"images": scenes, "images_per_shard": 1}
    with RecordWriter(tmp_path / "store", manifest, **options) as writer:
        box = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "objectness": torch.tensor([0.5])}
        writer.add(2, box)  # as if a first run had been killed after this image
    with RecordWriter(tmp_path / "store", manifest, **options) as writer:
        extract_proposals(cfg, model, scenes, writer)
    store = ProposalStore(tmp_path / "store")
    assert sorted(store) == [1, 2, 3]
    assert store[2].boxes.tolist() == [[1, 2, 3, 4]]  # not computed again
    for record in (scenes[0], scenes[2]):
        proposals = store[record["image_id"]]
        assert 0 < len(proposals) <= cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        assert (proposals.boxes[:, 2] <= record["width"]).all()
        assert (proposals.boxes[:, 3] <= record["height"]).all()
        assert (proposals.objectness.diff() <= 0).all()


def test_identity_depends_on_weights_and_first_stage(cfg, scenes, tmp_path):
    def fingerprint():
        return proposal_manifest(cfg, "tests", scenes).proposals

    before = fingerprint()
    assert fingerprint() == before
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST += 1
    assert fingerprint() != before
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST -= 1
    (tmp_path / "model.pth").write_bytes(b"other weights")
    assert fingerprint() != before


def test_a_supervised_detector_is_refused(cfg, scenes, tmp_path):
    info = DatasetInfo("tests", dataset_fingerprint(scenes), 3)
    manifest = Manifest(kind="proposals", dataset=info, proposals="p" * 16)
    with (
        RecordWriter(tmp_path / "store", manifest, images=scenes) as writer,
        pytest.raises(TypeError, match="OpenVocabularyRCNN"),
    ):
        extract_proposals(cfg, torch.nn.Linear(1, 1), scenes, writer)
    assert not Manifest.load(tmp_path / "store").complete


def test_image_ids_that_no_store_holds_are_named_before_anything_is_extracted(cfg, scenes):
    named = [{**scenes[0], "image_id": "frame_001"}, *scenes[1:]]
    with pytest.raises(CacheError, match="1 of .* image ids cannot be stored, first: 'frame_001'"):
        proposal_manifest(cfg, "tests", named)


def test_two_processes_extract_what_one_does(cfg, scenes, tmp_path):
    torch.set_num_threads(1)  # the processes are forked
    cfg.DATALOADER.NUM_WORKERS = 0
    torch.manual_seed(0)
    model = build_model(cfg)
    manifest = proposal_manifest(cfg, "tests", scenes)

    def extract(path):
        with RecordWriter(path, manifest, images=scenes, images_per_shard=1) as writer:
            return extract_proposals(cfg, model, scenes, writer)

    assert run_ranks(2, lambda rank: extract(tmp_path / "two")) == [0, 0]
    assert extract(tmp_path / "one").fingerprint == ProposalStore(tmp_path / "two").fingerprint
    assert extract(tmp_path / "one").complete  # nothing is left to do
