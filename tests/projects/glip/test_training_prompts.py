"""Captions, tokens and the tokens of boxes, through the mapper."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from ovd_d2.data.mapper import WithPassengers
from ovd_d2.data.train_loader import build_resumable_train_loader
from ovd_d2.projects.glip.grounding import load_grounding_json
from ovd_d2.projects.glip.negative_captions import NegativeCaptions
from ovd_d2.projects.glip.passengers import DetectionSet, PhrasesToFind, TrainingPrompts
from ovd_d2.projects.glip.prompts.detection import DetectionPrompts
from tests.projects.glip.captioned import CAPTIONS, mapper_with, tagged, write
from tests.projects.glip.small_words import WORDS, small_tokenizer

TOKENIZER = small_tokenizer()
NAMES = ["cat", "snowman", "bird", "anchor", "bus"]


@pytest.fixture
def captions(tmp_path):
    records = load_grounding_json(str(write(tmp_path)), str(tmp_path), "glip_passengers")
    return tagged(records, "captions")


@pytest.fixture
def detections(captions):
    """The same images with categories: two cats and a bird, an anchor, and nothing."""
    boxes = [[2, 3, 10, 12], [20, 4, 15, 20], [3, 3, 9, 9]]
    classes = [[0, 0, 2], [3], []]
    return [
        {
            **{key: one[key] for key in ("file_name", "height", "width", "image_id")},
            "data_set": "names",
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
                for box, category in zip(boxes, own, strict=False)
            ],
        }
        for one, own in zip(captions, classes, strict=True)
    ]


def passenger(**options):
    prompts = DetectionPrompts(NAMES, TOKENIZER, **options)
    contiguous = {k + 1: k for k in range(len(NAMES))}
    return TrainingPrompts(TOKENIZER, {"names": DetectionSet(prompts, contiguous)})


def words(mapped):
    return [WORDS[k] for k in mapped["tokens"].tolist()]


def told(mapped):
    """The words of each box."""
    found = words(mapped)
    rows = mapped["instances"].gt_token_targets
    assert rows.dtype == torch.bool and rows.shape == (len(mapped["instances"]), len(found))
    return [[found[k] for k in row.nonzero()[:, 0].tolist()] for row in rows]


def test_captions_of_a_detection_set_are_not_read(detections):
    # such as COCO's: there are no spans in them
    one = mapper_with(passenger(negatives=0))({**detections[0], "caption": "two cats outdoors"})
    assert sorted(one["caption"].split(". ")) == ["bird", "cat"] and len(one["instances"]) == 3


def test_a_caption_of_its_own(captions):
    first, second, third = map(mapper_with(passenger()), captions)
    assert first["caption"] == CAPTIONS[0] and words(first)[:4] == ["[CLS]", "a", "red", "cat"]
    assert told(first) == [["red", "cat"], ["snow", "##man"]]
    assert told(second) == [["two", "bird", "##s", "sofa"]]
    assert words(third) == ["[CLS]", "[SEP]"] and len(third["instances"]) == 0
    assert third["instances"].gt_token_targets.shape == (0, 2)


def test_names_of_the_data_set(detections):
    mapper = mapper_with(passenger(negatives=2))
    first, second, third = map(mapper, detections)
    assert told(first) == [["cat"], ["cat"], ["bird"]] and told(second) == [["anchor"]]
    assert len(third["instances"]) == 0 and third["caption"]
    assert len(first["caption"].split(". ")) in (3, 4)
    assert first["instances"].gt_classes.tolist() == [0, 0, 2]


def test_boxes_that_leave_the_image_take_their_tokens_with_them(captions):
    crop = T.CropTransform(15, 0, 25, 30)  # the cat is left of it
    mapped = mapper_with(passenger(), augmentations=[crop])(captions[0])
    assert told(mapped) == [["snow", "##man"]]
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[5, 4, 20, 24]]


def test_boxes_behind_the_cut_are_left_out(captions):
    record = dict(captions[0], caption="a red cat" + " of" * 300 + " cup")
    end = len(record["caption"])
    record["annotations"] = [dict(one) for one in record["annotations"][:2]]
    record["annotations"][1]["tokens_positive"] = [[end - 3, end]]
    mapped = mapper_with(passenger())(record)
    assert len(mapped["tokens"]) == 256 and words(mapped)[-1] == "[SEP]"
    assert told(mapped) == [["red", "cat"]]


def test_positives_of_another_prompt_are_left_out(detections):
    mapper = mapper_with(passenger(limit=3))
    seen = set()
    for seed in range(30):
        np.random.seed(seed)
        mapped = mapper(detections[0])
        kinds = {tuple(one) for one in told(mapped)}
        assert len(kinds) == 1  # "cat. " and "bird. " do not both fit into three tokens
        assert len(mapped["instances"]) == (2 if ("cat",) in kinds else 1)
        seen |= kinds
    assert seen == {("cat",), ("bird",)}


def test_categories_that_are_not_annotated_completely_are_no_negatives(detections):
    record = dict(detections[2], not_exhaustive_category_ids=[1, 2, 4, 5])
    for seed in range(10):
        np.random.seed(seed)
        assert mapper_with(passenger())(record)["caption"] == "bird"


def test_what_cannot_be_asked_for(captions, detections):
    with pytest.raises(ValueError, match=r"data set 'others' is not one of \['names'\]"):
        mapper_with(passenger())(dict(detections[0], data_set="others"))
    record = dict(captions[0], caption="a cat")
    with pytest.raises(ValueError, match=r"0.png \(image 1\): tokens_positive is wrong: \[2, 9\]"):
        mapper_with(passenger())(record)
    other = WithPassengers(mapper_with(), [passenger()])
    with pytest.raises(ValueError, match="does not say which annotations"):
        other(captions[0])


def sampled(records, workers, start=0, stop=12):
    np.random.seed(7)
    negatives = {"captions": NegativeCaptions(["a dog", "the green bus"], TOKENIZER)}
    one = TrainingPrompts(TOKENIZER, passenger()._sets, negatives)
    loader = build_resumable_train_loader(
        records,
        mapper=mapper_with(one, augmentations=[T.RandomFlip()]),
        total_batch_size=2,
        num_workers=workers,
    )
    loader.load_state_dict({**loader.state_dict(), "batches": start})
    found = []
    for batch, _ in zip(loader, range(stop - start), strict=False):
        found += [
            (x["image_id"], x["caption"], x["tokens"].tolist(), told(x), x["image"][0, 0].tolist())
            for x in batch
        ]
    return found


def test_the_same_prompts_whatever_the_workers_and_where_it_was_stopped(captions, detections):
    records = captions + detections
    expected = sampled(records, workers=0)
    assert sampled(records, workers=2) == expected
    assert sampled(records, workers=0, start=5) == expected[10:]
    by_image = {}
    for image, caption, *_ in expected:
        by_image.setdefault(image, set()).add(caption)
    assert max(map(len, by_image.values())) > 2  # drawn anew in every epoch


def test_phrases_to_find(captions):
    mapped = mapper_with(PhrasesToFind(TOKENIZER), is_train=False)(captions[0])
    assert words(mapped)[1:4] == ["a", "red", "cat"]
    rows = mapped["positive_map"]
    assert rows.dtype == torch.float32 and rows.sum(dim=1).tolist() == [1, 1]
    assert rows[0].nonzero()[:, 0].tolist() == [2, 3]
    nothing = mapper_with(PhrasesToFind(TOKENIZER), is_train=False)(captions[2])
    assert nothing["positive_map"].shape == (0, 2)
    with pytest.raises(ValueError, match="not of a grounding set"):
        mapper_with(PhrasesToFind(TOKENIZER), is_train=False)(
            {key: captions[0][key] for key in ("file_name", "height", "width")}
        )


def test_negative_captions():
    stock = [f"the {word}" for word in ("cat", "dog", "bus", "sofa")] + ["a red cup."]
    negatives = NegativeCaptions(stock, TOKENIZER)
    caption, numbers = "two birds on the sofa", []
    for seed in range(200):
        whole, start = negatives.beside(caption, ["two birds"], np.random.default_rng(seed))
        assert whole[start : start + len(caption)] == caption
        parts = whole.split(". ")
        numbers.append(len(parts) - 1)
        assert len(parts) == 1 or whole.endswith(".") and ".." not in whole
    assert 0.3 < np.mean([one == 0 for one in numbers]) < 0.5
    assert 0.2 < np.mean([one == 20 for one in numbers]) < 0.4
    assert max(numbers) == 20


def test_what_an_image_shows_is_no_negative():
    stock = ["Two red CATS lie there", "a cat. a bus", "the boxes", "a dog", "one cathedral"]
    negatives = NegativeCaptions(stock, TOKENIZER)
    drawn = set()
    for seed in range(100):
        phrases = ["a black cat", "the box"]
        whole, _ = negatives.beside("a black cat, the box", phrases, np.random.default_rng(seed))
        drawn |= set(whole.removesuffix(".").split(". "))
    assert drawn == {"a black cat, the box", "a dog", "one cathedral"}


def test_negative_captions_take_what_room_is_left():
    caption = "cat " * 240 + "bus"
    for seed in range(20):
        whole, start = NegativeCaptions(["a red dog"], TOKENIZER).beside(
            caption, ["bus"], np.random.default_rng(seed)
        )
        assert len(TOKENIZER.encode(whole)) <= 256
        assert whole.count("dog") <= 3 and whole[start:].startswith(caption)
    alone = NegativeCaptions([caption], TOKENIZER).beside(caption, [], np.random.default_rng(0))
    assert alone == (caption, 0)  # an image's own caption is no negative
