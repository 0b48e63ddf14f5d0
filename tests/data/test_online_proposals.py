"""Proposals embedded inside training are those that a cache would have given."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from ovd_d2.cache import EmbeddingCache
from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.crops import CropRecipe
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.online import OnlineTeacherLoader, add_embeddings
from ovd_d2.data.passengers import (
    DATA_SET,
    CachedProposals,
    ProposalsToEmbed,
    transform_cached_proposals,
)
from ovd_d2.engine.cache_builder import build_cache
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.structures import cached_proposals_of
from tests.proposal_stores import embedder, random_proposals, write_cache, write_proposals
from tests.tiny import tiny_config

HEIGHT, WIDTH = 60, 80
COUNTS = {1: 12, 2: 0, 3: 5}  # proposals of each image


@pytest.fixture(scope="module")
def teacher():
    return CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    """Three coloured images whose sides and channels all differ."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    entries = []
    for image_id in COUNTS:
        pixels = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT))
        path = folder / f"{image_id}.png"
        cv2.imwrite(str(path), pixels)
        box = {"bbox": [20.0, 15.0, 50.0, 45.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        box["segmentation"] = [[20.0, 15.0, 50.0, 15.0, 50.0, 45.0, 20.0, 45.0]]
        entries.append(
            {
                "file_name": str(path),
                "image_id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "annotations": [box],
            }
        )
    return entries


@pytest.fixture(scope="module")
def proposals(dicts, tmp_path_factory):
    tensors = {k: random_proposals(n, HEIGHT, WIDTH, seed=k) for k, n in COUNTS.items()}
    return write_proposals(tmp_path_factory.mktemp("stores") / "proposals", dicts, tensors)


@pytest.fixture(scope="module")
def cache(dicts, proposals, teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "cache"
    return EmbeddingCache(write_cache(path, dicts, proposals, teacher))


def lsj(cfg):
    cfg.INPUT.LSJ.ENABLED = True
    cfg.INPUT.LSJ.SIZE = 64


def resized_and_flipped(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 96), 128


def cropped(cfg):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.5, 0.5]
    cfg.INPUT.CROP.TYPE = "relative"


def mapper_of(change, image_format="RGB", *, cache=None, proposals=None, per_image=300):
    cfg = tiny_config("vild_text")  # vild_text opens no store of its own
    cfg.INPUT.FORMAT = image_format
    change(cfg)
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=True)
    if cache is not None:
        options["passengers"] = [CachedProposals(cache, per_image=per_image)]
    if proposals is not None:
        options["passengers"] = [ProposalsToEmbed(proposals, per_image=per_image)]
    return OpenVocabularyDatasetMapper(**options)


def draw(mapper, dicts, draws):
    """Each image `draws` times under augmentations that depend on nothing else."""
    for number in range(draws):
        np.random.seed(number)
        yield [mapper(entry) for entry in dicts]


def assert_same(online, cached, atol):
    assert online.keys() == cached.keys()
    assert torch.equal(online["image"], cached["image"])
    found, expected = (
        cached_proposals_of(online["instances"]),
        cached_proposals_of(cached["instances"]),
    )
    assert found.image_size == expected.image_size
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
    assert found.teacher_embeddings.dtype == torch.float32
    directions = F.normalize(expected.teacher_embeddings.float(), dim=1)  # they come as stored
    torch.testing.assert_close(found.teacher_embeddings, directions, atol=atol, rtol=0)


@pytest.mark.parametrize("top_k", [4, 300])
@pytest.mark.parametrize("change", [lsj, resized_and_flipped, cropped])
def test_online_equals_a_float32_cache(change, top_k, dicts, proposals, cache, teacher):
    from_cache = mapper_of(change, cache=cache, per_image=top_k)
    waiting = mapper_of(change, proposals=proposals, per_image=top_k)
    online = OnlineTeacherLoader(draw(waiting, dicts, 8), embedder(teacher))
    kept = []
    for found, expected in zip(online, draw(from_cache, dicts, 8), strict=True):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, atol=1e-5)
            kept.append(len(cached_proposals_of(one["instances"])))
    everything = {min(top_k, count) for count in COUNTS.values()}
    if change is resized_and_flipped:
        assert set(kept) == everything
    else:  # some proposals were cropped away
        assert set(kept) - everything and max(kept) > 0


@pytest.mark.parametrize("image_format", ["BGR", "L"])
def test_the_teacher_sees_colours_whatever_the_detector_sees(
    image_format, dicts, proposals, cache, teacher
):
    from_cache = mapper_of(lsj, image_format, cache=cache)
    waiting = mapper_of(lsj, image_format, proposals=proposals)
    online = OnlineTeacherLoader(draw(waiting, dicts[:1], 2), embedder(teacher))
    for found, expected in zip(online, draw(from_cache, dicts[:1], 2), strict=True):
        assert_same(found[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("resize", ["open_clip", "squash"])
def test_online_is_what_the_builder_stores(resize, dicts, proposals, teacher, tmp_path):
    recipe = CropRecipe(resize=resize)
    options = {"dataset_name": "toy_train", "recipe": recipe, "progress": False}
    build_cache(dicts, proposals, teacher, tmp_path, **options)
    from_cache = mapper_of(lsj, cache=EmbeddingCache(tmp_path))
    waiting = mapper_of(lsj, proposals=proposals)
    embed = embedder(teacher, batch_size=5, recipe=recipe)
    for found, expected in zip(
        OnlineTeacherLoader(draw(waiting, dicts, 3), embed), draw(from_cache, dicts, 3), strict=True
    ):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, atol=5e-4)  # stored in 16 bits


def test_the_first_k_are_the_builders_whatever_the_order_of_the_store(dicts, teacher, tmp_path):
    tensors = {}
    for image_id, count in COUNTS.items():
        best_first = random_proposals(count, HEIGHT, WIDTH, seed=image_id)
        turned = torch.arange(count - 1, -1, -1)
        tensors[image_id] = {name: value[turned] for name, value in best_first.items()}
    worst_first = write_proposals(tmp_path / "proposals", dicts, tensors)
    path = tmp_path / "cache"
    build_cache(
        dicts, worst_first, teacher, path, dataset_name="toy_train", top_k=4, progress=False
    )
    from_cache = mapper_of(resized_and_flipped, cache=EmbeddingCache(path))
    waiting = mapper_of(resized_and_flipped, proposals=worst_first, per_image=4)
    online = OnlineTeacherLoader(draw(waiting, dicts, 2), embedder(teacher))
    for found, expected in zip(online, draw(from_cache, dicts, 2), strict=True):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, atol=5e-4)


def test_the_resize_matters(dicts, proposals, teacher):
    (batch,) = draw(mapper_of(resized_and_flipped, proposals=proposals), dicts[:1], 1)
    image, boxes = (
        batch[0]["original_image"].numpy(),
        cached_proposals_of(batch[0]["instances"]).original_boxes,
    )
    first = embedder(teacher)(image, boxes.tensor)
    second = embedder(teacher, recipe=CropRecipe(resize="squash"))(image, boxes.tensor)
    assert (first - second).abs().max() > 0.01


def test_the_survivors_take_their_original_boxes_along():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 30, 70, 50], [5, 5, 45, 45]])
    crop = T.TransformList([T.CropTransform(40, 20, 40, 40)])
    result = transform_cached_proposals({"boxes": boxes.numpy()}, crop, (40, 40), top_k=10)
    assert result.proposal_boxes.tensor.tolist() == [[10, 10, 30, 30], [0, 0, 5, 25]]
    assert result.original_boxes.tensor.tolist() == boxes[1:].tolist()
    assert not result.has("teacher_embeddings")


def test_what_only_the_teacher_needs_does_not_reach_the_model(dicts, proposals):
    seen = []

    def embed(image, boxes):
        seen.append((image.shape, image.dtype, boxes.shape))
        return torch.zeros(len(boxes), 8)

    (batch,) = OnlineTeacherLoader(draw(mapper_of(lsj, proposals=proposals), dicts, 1), embed)
    assert [shape for shape, _, _ in seen] == [(HEIGHT, WIDTH, 3)] * 3
    assert {dtype for _, dtype, _ in seen} == {np.dtype(np.uint8)}
    assert seen[1][2] == (0, 4)  # an image without proposals
    for record in batch:
        assert "original_image" not in record
        fields = cached_proposals_of(record["instances"]).get_fields()
        assert set(fields) == {"proposal_boxes", "teacher_embeddings"}


def test_nan_from_the_teacher_names_the_image(dicts, proposals):
    (batch,) = draw(mapper_of(resized_and_flipped, proposals=proposals), dicts[:1], 1)
    with pytest.raises(FloatingPointError, match=r"image 1 \(.*1\.png\): .* NaN"):
        add_embeddings(batch[0], lambda image, boxes: torch.full((len(boxes), 8), torch.nan))


def test_the_images_of_testing_stay_small(dicts):
    cfg = tiny_config("vild")
    cfg.MODEL.VILD.DISTILLATION.CACHE = ""
    cfg.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = "nowhere"
    mapper = OpenVocabularyDatasetMapper(cfg, is_train=False)
    assert mapper.passengers == []
    assert {"original_image", "instances"}.isdisjoint(mapper(dicts[0]))


def test_an_excepted_set_brings_no_proposals(dicts, proposals, teacher):
    cfg = tiny_config("vild_text")
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=True)
    passenger = ProposalsToEmbed(proposals, per_image=300, except_sets=("new",))
    mapper = OpenVocabularyDatasetMapper(**{**options, "passengers": [passenger]})
    unknown = {**dicts[0], "image_id": 10**6, DATA_SET: "new"}  # the store does not have it
    ((one,),) = OnlineTeacherLoader([[mapper(unknown)]], embedder(teacher))
    found = cached_proposals_of(one["instances"])
    assert len(found) == 0 and found.teacher_embeddings.shape[0] == 0
