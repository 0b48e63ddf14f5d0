"""Which colour an object is given, and the page; recall is tested where it is evaluated."""

from types import SimpleNamespace

import numpy as np
import torch
from benchmarks import phrases
from detectron2.structures import Boxes, BoxMode, Instances

from ovd_d2.pictograms.dataset import COLOURS
from ovd_d2.projects.glip.grounding import CAPTION, SPANS

GLYPHS = ["anchor", "sun"]


def annotation(category, box, span, crowd=0):
    return {
        "category_id": category,
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": crowd,
        SPANS: [span],
    }


RECORD = {
    "file_name": "a.png",
    CAPTION: "two red anchors, a blue sun and many green suns",
    "annotations": [
        annotation(0, [0, 0, 10, 10], (4, 15)),
        annotation(0, [20, 0, 10, 10], (4, 15)),
        annotation(1, [40, 0, 10, 10], (19, 27)),
        annotation(1, [60, 0, 30, 30], (37, 47), crowd=1),
    ],
}


def test_objects_have_the_colour_of_their_phrase():
    found = phrases.objects_by_glyph(RECORD, GLYPHS)
    assert [colour for colour, _ in found["anchor"]] == ["red", "red"]
    ((colour, box),) = found["sun"]  # not the crowd
    assert colour == "blue" and np.array_equal(box, [40, 0, 50, 10])


def test_the_best_box_that_covers_an_object_says_its_colour():
    asked = []

    def predictor(image, names, threshold):
        asked.append((image, names))
        boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]]
        colours = ["red", "blue", "green"]  # right, too late, wrong; nothing covers the sun
        found = Instances((40, 100))
        found.pred_boxes = Boxes(torch.tensor(boxes).float())
        found.pred_classes = torch.tensor([list(COLOURS).index(one) for one in colours])
        return SimpleNamespace(instances=found)

    assert [*phrases.right_colours(predictor, [RECORD], GLYPHS)] == [True, False]
    assert [image for image, _ in asked] == ["a.png", "a.png"]
    assert asked[0][1][0] == "red anchor" and len(asked[1][1]) == len(COLOURS)


def rows_of(colours):
    ranks = dict.fromkeys(phrases.RANKS, 50.0)
    rows = [
        {"method": "glip_captions", "seed": seed, **ranks, "colour": colour, "boxes": 9}
        for seed, colour in enumerate(colours)
    ]
    names = ("glip_detection", "glip_teacher", "glip_student")
    ranks["R@1"] = 40.0
    other = {"seed": 0, **ranks, "colour": None, "boxes": 0}
    return [*rows, *({"method": name, **other} for name in names)]


def section_of(rows):
    return phrases.section(
        {"command": "python x", "date": "2026-01-02", "commit": "c0ffee1", "rows": rows}
    )


def test_the_section_has_a_row_per_method():
    text = section_of(rows_of([80.0, 90.0]))
    assert "85.0 ± 7.1" in text and text.count("| glip_") == 4
    assert text.count("| holds") == 3 and "teacher < student** does not hold." in text


def test_colours_that_are_seldom_right_are_explained():
    text = section_of(rows_of([20.0]))
    assert "**colour: the right one first, more often than not** does not hold. Likely" in text
