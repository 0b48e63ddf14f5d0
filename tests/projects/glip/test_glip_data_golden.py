"""The data half of GLIP beside the public code's numbers (tests/projects/glip/golden/data).

A part of `tools/check_golden.py glip FOLDER`'s: a few of its cases, and the word pieces of those.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from check_golden import main
from safetensors.torch import save_file

from ovd_d2.golden import GoldenFolder
from ovd_d2.projects.glip.golden import evaluation, preprocess, prompts

FOLDER = Path(__file__).parent / "golden" / "data"


def compared(module, folder=FOLDER):
    """Of the parts whose files are there."""
    golden = GoldenFolder(folder, None)
    chosen = (part for part in module.PARTS if not part.missing(golden))
    return [one for part in chosen for one in part.comparisons(golden)]


@pytest.mark.parametrize(
    ("module", "count"),
    [(prompts, 10), (evaluation, 102), (preprocess, 12)],
    ids=["prompts", "evaluation", "preprocess"],
)
def test_every_number_is_the_public_codes(module, count):
    found = compared(module)
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


@pytest.mark.parametrize(
    ("file", "skipped"),
    [
        ("glip_l_backbone.safetensors", "backbone of glip_l: no glip_t_forward.json"),
        ("glip_t_forward.*", "forward of glip_t: no keys_glip_t.json"),
        ("tiny_forward.safetensors", "forward of tiny: no tiny_train.json"),
        ("tiny_train.*", "training of tiny: no tiny_forward.safetensors"),
        ("tiny_chunked.*", "forward in chunks: no tiny_train.json"),
        ("units.safetensors", "units: no units.json"),
    ],
)
def test_later_parts_are_compared_where_one_lacks_a_file(tmp_path, capsys, file, skipped):
    name, _, kind = file.partition(".")
    save_file({"any": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    if kind == "*":
        (tmp_path / f"{name}.json").write_text("{}")
    shutil.copy(FOLDER / "flickr_postprocess.json", tmp_path)
    main(["glip", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert f"skipped {skipped}" in lines
    assert {one.split()[0] for one in lines if one.endswith(" ok")} == {"flickr_postprocess.json"}
