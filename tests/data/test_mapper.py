"""A proposal's embedding belongs to its box after every augmentation.

The embeddings here encode the original box, so that the box a proposal should have can be computed
from its embedding alone, by an affine map measured on the same augmentation.
"""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from pycocotools import mask as coco_mask

from ovd_d2.data.mapper import (
    OpenVocabularyDatasetMapper,
    mapping_problems,
)
from ovd_d2.data.passengers import CachedProposals, Passenger, transform_cached_proposals
from ovd_d2.structures import cached_proposals_of
from tests.tiny import tiny_config

HEIGHT, WIDTH = 60, 80


def random_boxes(count, seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, [WIDTH - 12, HEIGHT - 12], (count, 2))
    sides = rng.uniform(4, 12, (count, 2))
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()


def encoded(boxes):
    """A cache record whose embeddings are the boxes themselves."""
    return {"boxes": boxes.numpy(), "embeddings": boxes.numpy().copy()}


class FakeCache:
    def __init__(self, records):
        self.records = records

    def read_undecoded(self, image_id):
        return self.records[image_id]


def expected_boxes(original, transforms, image_size):
    moved = transforms.apply_box(original.numpy())
    height, width = image_size
    return torch.from_numpy(np.clip(moved, 0, [width, height, width, height])).float()


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "scene.png"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    box = [20.0, 15.0, 50.0, 45.0]
    polygon = [20.0, 15.0, 50.0, 15.0, 50.0, 45.0, 20.0, 45.0]
    return {
        "file_name": str(path),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 1,
                "segmentation": [polygon],
            }
        ],
    }


def jitter_mapper(cache, size=64, mask_format="polygon", **jitter):
    cfg = tiny_config("vild_text")
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.LSJ.ENABLED = True
    cfg.INPUT.LSJ.SIZE = size
    for key, value in jitter.items():
        cfg.INPUT.LSJ[key.upper()] = value
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=True)
    options["passengers"] = [] if cache is None else [CachedProposals(cache, per_image=50)]
    return OpenVocabularyDatasetMapper(**options)


def test_identity_keeps_everything_in_order():
    boxes = random_boxes(6, 0)
    result = transform_cached_proposals(
        encoded(boxes), T.TransformList([T.NoOpTransform()]), (HEIGHT, WIDTH), top_k=4
    )
    torch.testing.assert_close(result.proposal_boxes.tensor, boxes[:4])
    torch.testing.assert_close(result.teacher_embeddings, boxes[:4])


def test_flip_by_hand():
    boxes = torch.tensor([[10.0, 5.0, 30.0, 25.0]])
    result = transform_cached_proposals(
        encoded(boxes), T.TransformList([T.HFlipTransform(WIDTH)]), (HEIGHT, WIDTH), top_k=10
    )
    assert result.proposal_boxes.tensor.tolist() == [[50.0, 5.0, 70.0, 25.0]]
    assert result.teacher_embeddings.tolist() == boxes.tolist()


def test_a_rotated_proposal_is_the_box_around_its_four_corners():
    boxes = random_boxes(6, 0)
    turn = T.TransformList([T.RotationTransform(HEIGHT, WIDTH, 30, expand=True)])
    size = (turn.transforms[0].bound_h, turn.transforms[0].bound_w)
    before = boxes.clone()
    result = transform_cached_proposals(encoded(boxes), turn, size, top_k=10)
    torch.testing.assert_close(
        result.proposal_boxes.tensor, expected_boxes(before, turn, size), atol=1e-3, rtol=0
    )
    assert torch.equal(boxes, before)  # the record is not changed


def test_a_proposal_that_is_cropped_away_takes_its_embedding_with_it():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 30, 70, 50], [5, 5, 45, 45]])
    crop = T.TransformList([T.CropTransform(40, 20, 40, 40)])
    result = transform_cached_proposals(encoded(boxes), crop, (40, 40), top_k=10)
    assert result.proposal_boxes.tensor.tolist() == [[10, 10, 30, 30], [0, 0, 5, 25]]
    assert result.teacher_embeddings.tolist() == boxes[1:].tolist()


def test_no_proposals():
    empty = encoded(torch.zeros(0, 4))
    result = transform_cached_proposals(empty, T.TransformList([]), (HEIGHT, WIDTH), top_k=10)
    assert len(result) == 0
    assert result.teacher_embeddings.shape == (0, 4)


def check_alignment(seed):
    boxes = random_boxes(30, seed)
    np.random.seed(seed)
    augmentations = T.AugmentationList(
        [T.ResizeScale(0.1, 2.0, 64, 64), T.FixedSizeCrop((64, 64)), T.RandomFlip()]
    )
    aug_input = T.AugInput(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    transforms = augmentations(aug_input)
    size = aug_input.image.shape[:2]
    result = transform_cached_proposals(encoded(boxes), transforms, size, top_k=50)

    def told(message):
        return f"seed {seed}: {message}"

    moved = expected_boxes(result.teacher_embeddings, transforms, size)
    torch.testing.assert_close(result.proposal_boxes.tensor, moved, atol=1e-4, rtol=0, msg=told)
    everything = expected_boxes(boxes, transforms, size)
    visible = ((everything[:, 2:] - everything[:, :2]) > 1.0).all(dim=1)
    # none lost, in order
    torch.testing.assert_close(result.teacher_embeddings, boxes[visible], msg=told)
    return len(result)


def test_alignment_through_flip_jitter_and_crop_in_a_thousand_draws():
    kept = [check_alignment(seed) for seed in range(1000)]
    assert 0 in kept or min(kept) < 10  # some draws lose most proposals,
    assert max(kept) == 30  # some none


@pytest.mark.parametrize("seed", range(20))
def test_proposals_follow_the_image_and_its_annotations(record, seed):
    # The first proposal is the object's own box: whatever happens, both must agree.
    box = torch.tensor([record["annotations"][0]["bbox"]])
    cache = FakeCache({7: encoded(torch.cat([box, random_boxes(5, seed)]))})
    np.random.seed(seed)
    mapped = jitter_mapper(cache, min_scale=0.5, max_scale=2.0)(record)
    assert mapped["image"].shape == (3, 64, 64)
    proposals = cached_proposals_of(mapped["instances"])
    own = (proposals.teacher_embeddings == box).all(dim=1)
    if len(mapped["instances"]):
        torch.testing.assert_close(
            proposals.proposal_boxes.tensor[own],
            mapped["instances"].gt_boxes.tensor,
            atol=1.0,  # the object's box is recomputed from its rasterised polygon
            rtol=0,
        )


def test_the_mapper_does_not_change_its_input(record):
    cache = FakeCache({7: encoded(random_boxes(3, 0))})
    before = record["annotations"][0]["bbox"].copy()
    jitter_mapper(cache)(record)
    assert record["annotations"][0]["bbox"] == before
    assert "instances" not in record


def test_testing_reads_no_cache_and_no_annotations(record):
    mapper = OpenVocabularyDatasetMapper(tiny_config("vild"), is_train=False)
    mapped = mapper(record)
    assert mapper.passengers == []
    assert "annotations" not in mapped and "instances" not in mapped


MASKS = {"polygon": PolygonMasks, "bitmask": BitMasks}


def crop_mapper(mask_format):
    """Detectron2's own crop in place of the jitter."""
    cfg = tiny_config("vild_text")
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.CROP.ENABLED = True
    return OpenVocabularyDatasetMapper(cfg, is_train=True)


def plain_mapper(mask_format, mask_on=True):
    """Neither jitter nor crop: boxes are not computed anew."""
    cfg = tiny_config("vild_text")
    cfg.INPUT.MASK_FORMAT, cfg.MODEL.MASK_ON = mask_format, mask_on
    return OpenVocabularyDatasetMapper(cfg, is_train=True)


MAPPERS = {
    "jitter": lambda mask_format: jitter_mapper(None, mask_format=mask_format),
    "crop": crop_mapper,
    "plain": plain_mapper,
}


def without_objects(record, kind):
    """The record with `kind` of nothing to learn from."""
    if kind == "no key":
        return {key: value for key, value in record.items() if key != "annotations"}
    objects = [] if kind == "none" else [{**o, "iscrowd": 1} for o in record["annotations"] * 2]
    return {**record, "annotations": objects}


def check_no_objects(mapped, mask_format):
    instances, (height, width) = mapped["instances"], mapped["image"].shape[1:]
    assert "annotations" not in mapped
    assert instances.image_size == (height, width)
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.shape == (0,)
    assert instances.gt_classes.dtype == torch.int64
    assert len(instances.gt_masks) == 0
    assert isinstance(instances.gt_masks, MASKS[mask_format])
    if mask_format == "bitmask":
        assert instances.gt_masks.tensor.shape == (0, height, width)


@pytest.mark.parametrize("mask_format", MASKS)
@pytest.mark.parametrize("augmented", MAPPERS)
@pytest.mark.parametrize("kind", ["none", "crowd", "no key"])
def test_an_image_without_objects_has_empty_ground_truth(record, kind, augmented, mask_format):
    mapped = MAPPERS[augmented](mask_format)(without_objects(record, kind))
    check_no_objects(mapped, mask_format)


@pytest.mark.parametrize("mask_format", MASKS)
def test_objects_that_are_all_cropped_away_leave_empty_ground_truth(record, mask_format):
    mapper = jitter_mapper(None, size=16, mask_format=mask_format)
    mapper.augmentations = T.AugmentationList([T.CropTransform(60, 40, 16, 16)])
    check_no_objects(mapper(record), mask_format)


def keypoint_mapper():
    cfg = tiny_config("vild_text")
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (120,), "none"  # twice as large
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=True)
    return OpenVocabularyDatasetMapper(**{**options, "use_keypoint": True})


def test_keypoints_are_augmented_and_may_be_absent(record):
    record["annotations"][0]["keypoints"] = [21.0, 16.0, 2, 49.0, 44.0, 1]
    found = keypoint_mapper()(record)["instances"]
    assert found.gt_keypoints.tensor.tolist() == [[[42, 32, 2], [98, 88, 1]]]
    assert len(keypoint_mapper()(without_objects(record, "none"))["instances"]) == 0


def test_masks_as_rle_are_cropped_as_bitmasks(record):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[15:45, 20:50] = 1
    mapper = jitter_mapper(None, size=40, mask_format="bitmask")
    mapper.augmentations = T.AugmentationList([T.CropTransform(30, 5, 40, 40)])
    record["annotations"][0]["segmentation"] = coco_mask.encode(np.asfortranarray(mask))
    instances = mapper(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 10, 20, 40]]
    assert instances.gt_masks.tensor.sum() == 20 * 30


@pytest.mark.parametrize("iscrowd", [0, None, False])
def test_what_is_no_crowd_is_kept_and_a_crowd_left_out(record, iscrowd):
    (one,) = record["annotations"]
    crowd = {**one, "bbox": [0.0, 0.0, 70.0, 50.0], "iscrowd": 1}
    record["annotations"] = [crowd, {**one, "iscrowd": iscrowd}]
    instances = plain_mapper("polygon")(record)["instances"]
    assert len(instances) == 1
    width, height = np.subtract(*np.split(instances.gt_boxes.tensor[0].numpy(), 2)[::-1])
    assert width == height  # the 30 x 30 object


def test_without_masks_there_are_none(record):
    mapped = plain_mapper("polygon", mask_on=False)(without_objects(record, "none"))
    assert set(mapped["instances"].get_fields()) == {"gt_boxes", "gt_classes"}


@pytest.mark.parametrize("missing", ["key", None, []])
def test_an_object_without_mask_is_named_where_masks_are_learned(record, missing):
    bare = {**record["annotations"][0], "segmentation": missing}
    if missing == "key":
        del bare["segmentation"]
    record["annotations"].append(bare)
    with pytest.raises(ValueError, match="scene.png: 1 of its 2 objects have no 'segmentation'"):
        jitter_mapper(None)(record)
    assert len(plain_mapper("polygon", mask_on=False)(record)["instances"]) == 2


@pytest.mark.parametrize("mask_format", MASKS)
def test_an_image_without_objects_maps_without_problems(record, mask_format):
    assert mapping_problems(jitter_mapper(None, mask_format=mask_format), [record]) == []
    assert len(record["annotations"]) == 1  # it stood in for one without objects
    assert mapping_problems(jitter_mapper(None), []) == []


def test_a_mapper_that_fails_at_an_image_without_objects_is_a_problem(record, tmp_path):
    mapper = jitter_mapper(None)
    options = {key: getattr(mapper, key) for key in ("is_train", "image_format")}
    masks = {"use_instance_mask": True, "recompute_boxes": True}
    theirs = DatasetMapper(augmentations=mapper.augmentations.augs, **options, **masks)
    empty = {**record, "file_name": str(tmp_path / "empty.png"), "annotations": []}
    (tmp_path / "scene.png").rename(tmp_path / "empty.png")
    (problem,) = mapping_problems(theirs, [record, empty])
    assert "empty.png: mapping it as an image without objects fails" in problem
    assert "gt_masks" in problem
    (problem,) = mapping_problems(lambda mapped: {"image": 0}, [record])
    assert "no 'instances'" in problem


def test_a_passenger_is_told_the_annotations_of_the_objects_that_are_left(record):
    class Listener(Passenger):
        def __call__(self, image):
            self.heard = image

    extra = {"bbox": [0, 0, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "note": "top left"}
    objects = [
        {**record["annotations"][0], "category_id": 2, "note": "first"},
        {**extra, "category_id": 1, "iscrowd": 1},
        {**extra, "category_id": 3},
    ]
    options = {"image_format": "BGR", "passengers": [listener := Listener()]}
    crop = T.CropTransform(0, 0, 30, 30)
    mapper = OpenVocabularyDatasetMapper(True, augmentations=[crop], **options)
    mapped = mapper({**record, "annotations": objects})
    classes = mapped["instances"].gt_classes
    assert classes.dtype == torch.int64
    assert [one["category_id"] for one in listener.heard.objects] == classes.tolist()
    assert listener.heard.objects[-1]["note"] == "top left"
    assert listener.heard.objects[-1]["bbox"] == [0, 0, 20, 20]
    mapper({**record, "annotations": []})
    assert listener.heard.objects == []
    OpenVocabularyDatasetMapper(False, augmentations=[], **options)(record)
    assert listener.heard.objects is None
