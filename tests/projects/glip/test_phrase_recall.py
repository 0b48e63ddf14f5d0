"""Recall of phrases by hand, and the evaluator."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.evaluation.flickr_recall import (
    Phrase,
    PhraseRecallEvaluator,
    boxes_of_phrases,
    overlaps,
    phrase_problems,
    phrase_recall,
    read_boxes,
    read_sentence,
)
from tests.projects.glip.captioned import catalog, content, register  # noqa: F401

BOX, FAR = [0, 0, 10, 10], [50, 50, 60, 60]


def test_overlaps():
    found = overlaps(np.array([BOX, [0, 0, 10, 5], [5, 5, 5, 5]]), np.array([BOX, FAR]))
    assert found.tolist() == [[1, 0], [0.5, 0], [0, 0]]
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]


def test_recall_by_hand():
    phrases = [
        Phrase(np.array([BOX, FAR], float), ("people", "other")),
        Phrase(np.array([BOX], float), ("people",)),
    ]
    found = [np.array([FAR, [0, 0, 60, 60]]), np.array([FAR] * 5 + [BOX])]
    recalls = phrase_recall(phrases, found)
    one = recalls["any_box"]
    assert [one[k, "all"] for k in (1, 5, 10, None)] == [0.5, 0.5, 1, 1]
    assert one[1, "people"] == 0.5 and one[1, "other"] == 1
    merged = recalls["merged_boxes"]
    assert [merged[k, "all"] for k in (1, 5, 10, None)] == [0, 0.5, 1, 1]
    assert merged[5, "other"] == 1  # the box around both


def test_boxes_by_phrase_best_first_and_an_empty_one():
    boxes, scores = np.array([BOX, FAR, BOX]), np.array([0.2, 0.9, 0.5])
    first, second = boxes_of_phrases(boxes, scores, np.array([0, 0, 0]), 2)
    assert first.tolist() == [FAR, BOX, BOX, [0, 0, 0, 0]]
    assert second.tolist() == [[0, 0, 0, 0]]
    assert boxes_of_phrases(np.zeros((0, 4)), np.zeros(0), np.zeros(0), 1)[0].shape == (1, 4)


SENTENCE = "[/EN#10/people/other A man] on [/EN#11/scene the moon] with [/EN#12/animals cats] ."
XML = """<annotation>
<object><name>10</name><name>12</name>
  <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox></object>
<object><name>12</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object>
<object><name>11</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""


def test_files_of_flickr30k_entities():
    assert read_sentence(SENTENCE)[:2] == [("10", ("people", "other")), ("11", ("scene",))]
    assert read_sentence("nothing to see here .") == []
    boxes = read_boxes(XML)
    assert boxes["10"].tolist() == [[1, 2, 11, 12]]
    assert boxes["12"].tolist() == [[1, 2, 11, 12], [5, 5, 9, 9]] and "11" not in boxes


def instances(*found):
    """Of (box, score, label)."""
    boxes, scores, labels = zip(*found, strict=True) if found else ((), (), ())
    return Instances(
        (30, 40),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(labels, dtype=torch.int64),
    )


def shown(evaluator, ids, *outputs):
    evaluator.reset()
    evaluator.process([{"image_id": one} for one in ids], [{"instances": one} for one in outputs])
    return evaluator.evaluate()


def test_the_evaluator(tmp_path, catalog, caplog):  # noqa: F811
    register("glip_phrases", tmp_path, evaluator_type="phrase_grounding")
    evaluator = PhraseRecallEvaluator("glip_phrases", output_dir=str(tmp_path))
    cat, snowman = [2, 3, 12, 15], [20, 4, 35, 24]
    one = instances((cat, 0.9, 0), (cat, 0.8, 1), (snowman, 0.7, 1))
    with caplog.at_level("INFO"):
        results = shown(evaluator, [1, 2, 3], one, instances(), instances())["phrases"]
    said = evaluator.description
    assert said["protocol"] == (
        "recall of phrases by any box and by merged boxes, IoU 0.5, boxes of the annotation file"
    )
    assert (said["dataset"], said["phrases"], said["captions"]) == ("glip_phrases", "2", "3")
    assert said["first caption"] == content()["images"][0]["caption"]
    assert f"dataset: glip_phrases; protocol: {said['protocol']}; phrases: 2" in caplog.text
    assert results["R@1"] == 50 and results["R@5"] == 100 and results["merged-R@1"] == 50
    written = json.loads((tmp_path / "phrase_recall.json").read_text(encoding="utf-8"))
    assert written["phrases"] == 2 and written["recall"] == results
    with pytest.raises(RuntimeError, match="no prediction for 1 of its 3 sentences"):
        shown(evaluator, [2, 3], instances(), instances())


def test_the_evaluator_on_entities(tmp_path, catalog):  # noqa: F811
    register("glip_entities", tmp_path, evaluator_type="phrase_grounding")
    for kind in ("Annotations", "Sentences"):
        (tmp_path / kind).mkdir()
    for k in (100, 101, 102):
        (tmp_path / "Annotations" / f"{k}.xml").write_text(XML, encoding="utf-8")
        line = SENTENCE if k == 100 else "nothing to see here ."
        (tmp_path / "Sentences" / f"{k}.txt").write_text(line, encoding="utf-8")
    evaluator = PhraseRecallEvaluator("glip_entities", entities=str(tmp_path))
    exact = instances(([1, 2, 12, 13], 0.9, 0), ([1, 2, 12, 13], 0.9, 1))
    results = shown(evaluator, [1, 2, 3], exact, instances(), instances())["phrases"]
    assert results["R@1-people"] == results["R@1-animals"] == 100
    (tmp_path / "Sentences" / "101.txt").write_text(SENTENCE, encoding="utf-8")
    (tmp_path / "Annotations" / "102.xml").unlink()
    with pytest.raises(SetupError) as error:
        PhraseRecallEvaluator("glip_entities", entities=str(tmp_path))
    assert "image 101 has 2 phrases with boxes, the annotation file 0" in error.value.problems[0]
    assert "102" in error.value.problems[1]


def test_a_phrase_without_a_box_does_not_count(tmp_path, catalog):  # noqa: F811
    table = content()
    table["images"][0]["tokens_positive_eval"].insert(0, [[0, 1]])  # the places of others stay
    register("glip_lost", tmp_path, table, evaluator_type="phrase_grounding")
    evaluator = PhraseRecallEvaluator("glip_lost")
    one = instances(([2, 3, 12, 15], 0.9, 1), ([20, 4, 35, 24], 0.7, 2))
    results = shown(evaluator, [1, 2, 3], one, instances(), instances())["phrases"]
    assert results["R@1"] == results["R@all"] == 100


def test_what_cannot_be_evaluated_is_known_before(tmp_path, catalog):  # noqa: F811
    records = [{"image_id": 7, "annotations": [], "tokens_positive_eval": [[[0, 1]]]}]
    (problem,) = phrase_problems("glip_none", records)
    assert (
        problem == "'glip_none': none of its 1 phrases (tokens_positive_eval) has a box to be found"
    )
    (problem,) = phrase_problems("glip_none", records, str(tmp_path / "gone"))
    assert problem.startswith(f"MODEL.GLIP.ENTITIES: no folder at '{tmp_path / 'gone'}'")
    many = [{**records[0], "image_id": k, "original_img_id": k} for k in range(30)]
    assert len(phrase_problems("glip_none", many, str(tmp_path))) == 21
    for kind in ("Annotations", "Sentences"):
        (tmp_path / kind).mkdir()
    (tmp_path / "Annotations" / "7.xml").write_text(XML, encoding="utf-8")
    (tmp_path / "Sentences" / "7.txt").write_text(SENTENCE, encoding="utf-8")
    last = {**records[0], "original_img_id": 7, "sentence_id": 1}
    (problem,) = phrase_problems("glip_none", [last], str(tmp_path))
    assert "sentence 1 of image 7: the file has 1 sentences, from 0 on" in problem
