"""Recall of phrases and fixed AP beside the public code's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ovd_d2.evaluation.detection_evaluation import DetectionEvaluation
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.protocols import FEDERATED, FIXED, Protocol
from ovd_d2.golden import Found, GoldenFolder, Part
from ovd_d2.projects.glip.evaluation.flickr_recall import (
    ANY,
    MERGED,
    boxes_of_phrases,
    phrase_recall,
    phrases_of_sentence,
    read_boxes,
)
from ovd_d2.vocabulary import Categories

PRINTED = 5.1e-4  # the reference of AP has three places
_LINE = re.compile(
    r"\((AP)\) @\[ IoU=([\d.:]+)\s*\| area=\s*(\w+) .*catIds=\s*(\w+)\] = (-?[\d.]+)"
)
_METRICS = {  # (IoU, area, categories) -> name here
    ("0.50:0.95", "all", "all"): "AP",
    ("0.50", "all", "all"): "AP50",
    ("0.75", "all", "all"): "AP75",
    ("0.50:0.95", "s", "all"): "APs",
    ("0.50:0.95", "m", "all"): "APm",
    ("0.50:0.95", "l", "all"): "APl",
    ("0.50:0.95", "all", "r"): "APr",
    ("0.50:0.95", "all", "c"): "APc",
    ("0.50:0.95", "all", "f"): "APf",
}


def _boxes(folder: GoldenFolder, file: str) -> Found:
    golden = folder.json(file)
    given = golden["input"]
    (width, height), (rows, columns) = given["model_wh"], given["orig_hw"]
    scale = np.array([columns / width, rows / height] * 2)
    labels = np.array(given["labels"]) - 1  # the reference counts from 1 on
    ours = boxes_of_phrases(
        np.array(given["boxes"]) * scale, np.array(given["scores"]), labels, given["num_phrases"]
    )
    for number, theirs in enumerate(golden["output_boxes"]):
        yield f"phrase {number}", _apart(ours[number], np.array(theirs)), 1e-5


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")


def _recall(folder: GoldenFolder, file: str) -> Found:
    golden = folder.json(file)
    boxes = {name: read_boxes(one["xml"]) for name, one in golden["annotations"].items()}
    given = {(one["image_id"], one["sentence_id"]): one["boxes"] for one in golden["predictions"]}
    phrases, found = [], []
    for image in golden["image_ids"]:
        for number, line in enumerate(golden["sentence_files"][image]):
            if own := phrases_of_sentence(line, boxes[image]):
                phrases += own
                found += [np.array(one) for one in given[image, str(number)]]
    recalls = phrase_recall(phrases, found, golden["iou_threshold"])
    for theirs, kind in (("separate", ANY), ("merged", MERGED)):
        ours = {
            f"Recall@{k}_{name}" if k else f"Upper_bound_{name}": share
            for (k, name), share in recalls[kind].items()
        }
        expected = golden["result"][theirs]
        for name in sorted({*ours, *expected}):
            both = name in ours and name in expected
            apart = abs(ours[name] - expected[name]) if both else float("inf")
            yield f"{kind}, {name}", apart, 1e-9


def _fixed_ap(folder: GoldenFolder, file: str) -> Found:
    golden = folder.json(file)
    truth = golden["ground_truth"]
    ordered = sorted(truth["categories"], key=lambda one: one["id"])
    categories = Categories(
        [one["name"] for one in ordered],
        [one["frequency"] == "r" for one in ordered],
        ids=[one["id"] for one in ordered],
        frequencies=[one["frequency"] for one in ordered],
    )
    detections = list(_detections(golden["detections_xyxy_per_image_and_chunk"]))
    for case, lines in golden["result"].items():
        evaluation = DetectionEvaluation(
            "golden", categories, _protocol(case), build_engine("reference")
        )
        ground_truth = GroundTruth(truth, "lvis", masks=False)
        copies = [dict(one) for one in detections]  # the lvis package adds to them
        metrics = evaluation.run(ground_truth, copies, ["bbox"])["bbox"]
        for match in filter(None, map(_LINE.search, lines)):
            name = _METRICS[match[2], match[3], match[4]]
            theirs = float(match[5])
            ours = metrics[name] / 100 if theirs >= 0 else theirs  # -1: nothing to evaluate
            yield f"{case}, {name}", abs(ours - theirs), PRINTED


def _protocol(case: str) -> Protocol:
    limit = case.rpartition("_topk")[2]
    return replace(FIXED, per_category=int(limit)) if limit.isdigit() else FEDERATED


def _detections(chunks: Any) -> Iterator[dict[str, Any]]:
    for one in chunks:
        for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found = {"image_id": one["image_id"], "category_id": label}
            yield {**found, "bbox": sides, "score": score}


PARTS = (
    Part("boxes of phrases", ("flickr_postprocess.json",), _boxes),
    Part("recall of phrases", ("flickr_recall.json",), _recall),
    Part("fixed AP", ("lvis_fixed_ap.json",), _fixed_ap),
)
