from __future__ import annotations

import csv
import dataclasses
import re

import pytest
from evaluation_scenes import FREQUENCIES, NAMES, feed, make_dataset, noisy_detections

from ovd_d2.evaluation import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.protocols import FEDERATED, FIXED

IDS = list(range(1, len(NAMES) + 1))
PER_IMAGE = 7  # what the noisy detector gives


@pytest.fixture
def dataset():
    return make_dataset(IDS)


@pytest.fixture
def evaluate(register, dataset, tmp_path):
    register("ov_evaluation", dataset, "lvis", thing_classes=NAMES)

    def run(tasks=("bbox", "segm"), **options):
        folder = str(tmp_path / "out")
        evaluator = OpenVocabularyLVISEvaluator(
            "ov_evaluation", tasks, output_dir=folder, **options
        )
        return feed(evaluator, noisy_detections(dataset, IDS))

    return run


def test_the_files_of_an_evaluation(evaluate, tmp_path):
    evaluate(failures=2)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "failures",
        "instances_predictions.pth",
        "lvis_instances_results.json",
        "novel_confusion.json",
        "per_category.csv",
        "per_category.json",
    ]


def test_one_table_that_names_everything(evaluate, caplog):
    with caplog.at_level("INFO"):
        metrics = evaluate()
    (table,) = [one.message for one in caplog.records if "AP50 novel" in one.message]
    _, heading, _, header, _, box, mask = table.splitlines()
    assert heading == (
        "dataset: ov_evaluation; protocol: LVIS federated (best 300 detections per image); "
        "engine: reference (lvis 0.5.3)"
    )
    assert len(header.split("|")) == len(box.split("|")) == 16
    assert f" {metrics['segm']['AP50_novel']:.1f} |" in mask


def test_novel_categories_come_first_and_bad_ones_before_good_ones(evaluate, dataset, tmp_path):
    evaluate()
    with (tmp_path / "out" / "per_category.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [one["group"] for one in rows] == ["novel"] * 4 + ["base"] * 3
    masks = [float(one["mask AP"]) for one in rows if one["mask AP"]]
    assert masks[:3] == sorted(masks[:3]) and masks[3:] == sorted(masks[3:])
    assert (rows[3]["category"], rows[3]["objects"], rows[3]["box AP"]) == ("ghost", "0", "")
    counts = [one["category_id"] for one in dataset["annotations"]]
    for row in rows:
        k = NAMES.index(row["category"])
        assert row["frequency"] == FREQUENCIES[k]
        assert int(row["objects"]) == counts.count(IDS[k])


@pytest.mark.parametrize(
    ("protocol", "limit", "message"),
    [
        (
            FIXED,
            PER_IMAGE,
            "all detections .* is 7 and cut .* 12 of 12 .*: raise it, or",
        ),
        (FIXED, PER_IMAGE + 1, None),  # no image is full
        (FIXED, -1, None),
        (FEDERATED, PER_IMAGE, "counts the best 300 detections .* raise it to 300"),
        (FEDERATED, 300, None),
        (dataclasses.replace(FEDERATED, per_image=5), PER_IMAGE, None),
    ],
)
def test_a_model_that_gives_too_few_is_told(evaluate, caplog, protocol, limit, message):
    with caplog.at_level("INFO"):
        evaluate(("bbox",), protocol=protocol, model_limit=limit)
    said = [one for one in caplog.records if "DETECTIONS_PER_IMAGE" in one.message]
    assert len(said) == (message is not None)
    if message is not None:
        assert re.search(message, said[0].message)
        assert said[0].levelname == ("WARNING" if protocol is FIXED else "INFO")


def test_another_data_set_is_refused(register, dataset):
    register("ov_other", make_dataset(IDS, images=2), "lvis", thing_classes=NAMES)
    evaluator = OpenVocabularyLVISEvaluator("ov_other")
    with pytest.raises(ValueError, match=r"images \[3, 4, 5, 6, 7\] that ov_other does not have"):
        feed(evaluator, noisy_detections(dataset, IDS))
