"""The small data set to tune on: new names with ten boxes each, and what it is judged by."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from ovd_d2.data.builtin import TUNING_SET, pictograms
from ovd_d2.data.categories import missing_file_problem
from ovd_d2.data.registration import register_data_sets
from ovd_d2.pictograms.dataset import (
    GLYPHS,
    DifferentArgumentsError,
    TuningArguments,
    build_categories,
    prepare_tuning,
    tuning,
)
from ovd_d2.pictograms.dataset.plan import choose_frequencies

SMALL = TuningArguments(choose=1, val=2, choose_old=12, val_old=14, size=64)
OLD = (tuning.CHOOSE_OLD, tuning.VAL_OLD)
KNOWN = build_categories(80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_tuning(tmp_path_factory.mktemp("datasets"), SMALL)


@pytest.fixture(scope="module")
def sets(folder):
    names = (tuning.TRAIN, tuning.CHOOSE, tuning.VAL, *OLD)
    return {one: json.loads((folder / f"{TUNING_SET}_{one}.json").read_text()) for one in names}


def boxes(dataset):
    found = [one["category_id"] for one in dataset["annotations"]]
    return [found.count(one["id"]) for one in dataset["categories"]]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_eight_further_glyphs_have_the_boxes_that_were_asked_for(sets):
    names = [one["name"] for one in sets["train"]["categories"]]
    assert set(names) <= {glyph.name for glyph in GLYPHS[80:]} and len(set(names)) == 8
    for name, each in (("train", 10), ("choose", 1), ("val", 2)):
        assert [one["name"] for one in sets[name]["categories"]] == names
        assert boxes(sets[name]) == [each] * 8
        assert len(sets[name]["images"]) == 2 * each
    letters = {one["frequency"] for one in sets["train"]["categories"]}
    assert letters == {"c"}  # none is novel


def test_objects_of_known_names_lie_among_them(sets):
    for split in list(tuning._splits(SMALL))[:3]:
        drawn = [*split.categories, *split.others]
        for objects in split.images:
            known = [drawn[k] in KNOWN for k in objects]
            assert known == [False] * 4 + [True] * 2
    for image in sets["train"]["images"]:
        found = [one for one in sets["train"]["annotations"] if one["image_id"] == image["id"]]
        assert len(found) == 4


def test_the_old_names_keep_their_frequencies(sets):
    for name in OLD:
        table = sets[name]["categories"]
        assert [one["name"] for one in table] == [one.name for one in KNOWN]
        assert [one["frequency"] for one in table] == choose_frequencies(KNOWN, seed=0)
        assert min(boxes(sets[name])) > 0


def test_no_scene_is_in_two_sets(folder):
    images = [path.read_bytes() for path in folder.rglob("*.png")]
    assert len(set(images)) == len(images) == 20 + 2 + 4 + 12 + 14


def test_no_image_has_the_id_of_another(sets):
    ids = [image["id"] for one in sets.values() for image in one["images"]]
    assert len(set(ids)) == len(ids) == 20 + 2 + 4 + 12 + 14
    assert min(ids) > 1280  # those of pictograms_v1


def test_it_loads_as_it_is_registered(folder, monkeypatch, tmp_path):
    offered = pictograms(TUNING_SET, "train")
    register_data_sets([offered.name])
    metadata = vars(MetadataCatalog.get(offered.name))
    monkeypatch.setitem(metadata, "json_file", str(tmp_path / "none.json"))
    assert "datasets/prepare_pictograms.py --tuning)" in missing_file_problem(offered.name)
    file = str(folder.parent / offered.json_file)
    monkeypatch.setitem(metadata, "json_file", file)
    records = offered.load(file, f"{folder}/", offered.name)
    assert len(records) == 20
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_equal_arguments_give_equal_bytes_and_others_are_refused(tmp_path):
    few = replace(SMALL, train=1, val=1)
    first, second = (prepare_tuning(tmp_path / name, few) for name in "ab")
    before = digests(first)
    assert digests(second) == before
    assert prepare_tuning(tmp_path / "a", few) == first
    with pytest.raises(DifferentArgumentsError, match="seed was 0, now 1"):
        prepare_tuning(tmp_path / "a", replace(few, seed=1))
    others = replace(few, names=(*few.names[:-1], "gemini"))
    with pytest.raises(DifferentArgumentsError, match="names was .*circled arrow.*, now .*gemini"):
        prepare_tuning(tmp_path / "a", others)
    assert digests(first) == before
    changed = digests(prepare_tuning(tmp_path / "a", replace(few, seed=1), overwrite=True))
    assert changed.keys() == before.keys()
    assert not set(changed.values()) & set(before.values())
