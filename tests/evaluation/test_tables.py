from __future__ import annotations

import math

from ovd_d2.evaluation import results_table
from ovd_d2.evaluation.tables import evaluation_table

BOX = {"AP": 51.25, "APr": 40.0, "APc": 50.0, "APf": 60.0, "AP50_base": 97.94, "AP50_novel": 62.6}


def test_golden():
    rows = {
        "vild_text": {"bbox": BOX, "segm": {**BOX, "AP": 49.0}},
        "supervised_base": {"bbox": {**BOX, "APr": 0.0, "AP50_novel": math.nan}, "segm": {}},
    }
    columns = "{} AP |   APr |   APc |   APf |   AP50 base |   AP50 novel |"
    dashes = "------:|------:|------:|------------:|-------------:|"
    numbers = "  40.0 |  50.0 |  60.0 |        97.9 |         62.6 |"
    assert results_table(rows).splitlines() == [
        "| method          |" + columns.format("   box") + columns.format("   mask"),
        "|:----------------|---------:|" + dashes + "----------:|" + dashes,
        "| vild_text       |     51.2 |" + numbers + "      49.0 |" + numbers,
        "| supervised_base |     51.2 |   0.0 |  50.0 |  60.0 |        97.9 |            - |"
        "         - |     - |     - |     - |           - |            - |",
    ]


def test_box_only():
    table = results_table({"clip_crops": {"box": BOX}})
    assert "mask" not in table
    assert "97.9" in table


def test_empty():
    assert results_table({}).startswith("| method")


def test_evaluation_table_golden():
    description = {"dataset": "my_val", "protocol": "COCO (best 100)", "engine": "none"}
    box = {"AP": 1.25, "AP50": 20.0, "AP_novel": math.nan, "AP50_novel": 3.0}
    assert evaluation_table(description, {"bbox": box, "segm": {"AP": 2.0}}).splitlines() == [
        "dataset: my_val; protocol: COCO (best 100); engine: none",
        "",
        "| percent   |   AP |   AP50 |   AP novel |   AP50 novel |",
        "|:----------|-----:|-------:|-----------:|-------------:|",
        "| box       |  1.2 |   20.0 |          - |          3.0 |",
        "| mask      |  2.0 |      - |          - |            - |",
    ]


def test_evaluation_table_of_boxes():
    assert "mask" not in evaluation_table({"dataset": "my_val"}, {"bbox": {"AP": 1.0}})
