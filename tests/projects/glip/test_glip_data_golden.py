"""The data half of GLIP beside the public code's numbers (tests/projects/glip/golden/data).

A part of `tools/check_golden.py glip FOLDER`'s: a few of its cases, and the word pieces of those.
"""

import json
import shutil
from pathlib import Path

import pytest

from ovd_d2.golden import GoldenFolder
from ovd_d2.projects.glip.golden import evaluation, preprocess, prompts

FOLDER = Path(__file__).parent / "golden" / "data"


def compared(part, folder=FOLDER):
    return list(part.comparisons(GoldenFolder(folder, None)))


@pytest.mark.parametrize(
    ("part", "count"),
    [(prompts, 10), (evaluation, 102), (preprocess, 12)],
    ids=["prompts", "evaluation", "preprocess"],
)
def test_every_number_is_the_public_codes(part, count):
    found = compared(part)
    assert [one for one in found if not one.ok] == []
    assert len(found) == count


def test_other_numbers_fail(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    golden = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    golden["cases"][0]["caption"] += "."
    golden["cases"][1]["positive_value"][0] += 1e-4
    golden["clean_name"]["cup_(x)_(y)"] = "cup"
    (tmp_path / "prompts.json").write_text(json.dumps(golden), encoding="utf-8")
    failed = {one.name for one in compared(prompts, tmp_path) if not one.ok}
    names = [f"{one['names']}, seed {one['seed']}" for one in golden["cases"]]
    assert failed == {"clean_name", names[0], f"{names[1]}: positive_value"}


def test_other_recalls_and_boxes_fail(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    recall = json.loads((FOLDER / "flickr_recall.json").read_text(encoding="utf-8"))
    for one in recall["predictions"]:
        one["boxes"] = [[] for _ in one["boxes"]]
    recall["result"]["merged"].pop("Recall@5_people")
    (tmp_path / "flickr_recall.json").write_text(json.dumps(recall), encoding="utf-8")
    ap = json.loads((FOLDER / "lvis_fixed_ap.json").read_text(encoding="utf-8"))
    del ap["detections_xyxy_per_image_and_chunk"][::2]
    (tmp_path / "lvis_fixed_ap.json").write_text(json.dumps(ap), encoding="utf-8")
    failed = {one.name for one in compared(evaluation, tmp_path) if not one.ok}
    assert {"any_box, Recall@1_all", "merged_boxes, Recall@5_people"} <= failed
    assert "fixed_ap_topk10000, AP" in failed
