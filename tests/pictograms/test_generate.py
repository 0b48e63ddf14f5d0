"""The files of the Pictograms data set: content, determinism, resumption, refusal."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json
from lvis import LVIS
from PIL import Image

from ovd_d2.data.builtin import _load_pictograms
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.registration import register_data_sets
from ovd_d2.pictograms.dataset import (
    DifferentArgumentsError,
    check_version,
    frequency_of,
    generate,
    prepare,
)
from tests.tiny import tiny_config

MINI = "pictograms_v1_mini"
REGULAR = 24  # training images of the mini set with base objects; 2 + 2 + 2 without follow
COMMAND = Path(__file__).parents[2] / "datasets" / "prepare_pictograms.py"


def _prepare(root: Path, **options: Any) -> Path:
    settings = {"full": False, "workers": 1, "progress": False, **options}
    (folder,) = prepare(root, **settings)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _prepare(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def splits(mini: Path) -> dict[str, dict[str, Any]]:
    return {
        split: json.loads((mini / f"{MINI}_{split}.json").read_text()) for split in ("train", "val")
    }


@pytest.fixture(scope="module")
def planned(splits) -> dict[str, list[set[int]]]:
    """The category ids that are in each image, by the plan and not by the annotations."""
    categories = generate.build_categories(80)
    frequencies = generate.choose_frequencies(categories, 0)
    train = generate.plan_train(frequencies, REGULAR, 0)
    plans = {
        "train": generate.without_base(train, frequencies, 0),
        "val": generate.plan_val(80, 12, 0),
    }
    return {
        split: [
            {index + 1 for index in objects}
            for objects in [*plan.images, *((category,) for category in plan.crowds)]
        ]
        for split, plan in plans.items()
    }


def _found(data: dict[str, Any]) -> list[set[int]]:
    """The annotated category ids of each image."""
    sets: dict[int, set[int]] = {image["id"]: set() for image in data["images"]}
    for annotation in data["annotations"]:
        sets[annotation["image_id"]].add(annotation["category_id"])
    return list(sets.values())


def test_bytes_do_not_depend_on_the_number_of_workers(mini, tmp_path):
    assert _digests(_prepare(tmp_path, workers=2)) == _digests(mini)


def test_another_seed_gives_another_data_set(mini, tmp_path):
    other = _digests(_prepare(tmp_path, seed=1))
    assert all(other[name] != digest for name, digest in _digests(mini).items())


def test_categories_follow_lvis_and_its_frequency_rule(splits, planned):
    categories = splits["train"]["categories"]
    assert categories == splits["val"]["categories"]
    assert [category["id"] for category in categories] == list(range(1, 81))
    needed = {"id", "name", "synset", "synonyms", "def", "frequency", "image_count"}
    assert all(needed | {"instance_count"} <= category.keys() for category in categories)
    for category in categories:
        present = sum(category["id"] in ids for ids in planned["train"])
        assert category["image_count"] == present <= category["instance_count"]
        regular = sum(category["id"] in ids for ids in planned["train"][:REGULAR])
        assert frequency_of(regular, REGULAR) == category["frequency"]
    letters = [category["frequency"] for category in categories]
    assert [letters.count(letter) for letter in "rcf"] == [16, 40, 24]


def test_rare_categories_are_drawn_but_not_annotated_in_training(splits, planned):
    rare = {c["id"] for c in splits["train"]["categories"] if c["frequency"] == "r"}
    assert set.union(*planned["train"]) >= rare
    crowded = {a["image_id"] for a in splits["train"]["annotations"] if a["iscrowd"]}
    for image, annotated, present in zip(
        splits["train"]["images"], _found(splits["train"]), planned["train"], strict=True
    ):
        assert annotated == present - rare
        unnamed = present if image["id"] in crowded else present & rare
        assert set(image["not_exhaustive_category_ids"]) == unnamed
        assert not set(image["neg_category_ids"]) & present
        assert len(image["neg_category_ids"]) == 20
    assert not splits["train"]["info"]["rare_annotated"]


def test_validation_annotates_everything(splits, planned):
    assert _found(splits["val"]) == planned["val"]
    assert set.union(*planned["val"]) == set(range(1, 81))
    for image, present in zip(splits["val"]["images"], planned["val"], strict=True):
        assert image["not_exhaustive_category_ids"] == []
        assert set(image["neg_category_ids"]) == set(range(1, 81)) - present


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_match_boxes_and_areas(mini, split):
    api = LVIS(str(mini / f"{MINI}_{split}.json"))
    for annotation in api.anns.values():
        mask = api.ann_to_mask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array([x, y, x + width, y + height]) - corners).max() <= 1
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.03, abs=3)


def test_masks_of_an_image_do_not_overlap(mini):
    api = LVIS(str(mini / f"{MINI}_val.json"))
    for items in api.img_ann_map.values():
        masks = np.stack([api.ann_to_mask(item) for item in items])
        assert (masks.sum(axis=0) > 1).mean() < 0.005


def test_the_place_in_a_caption_does_not_tell_the_size(splits):
    correlations = []
    for data in splits.values():
        areas = {one["id"]: one["area"] for one in data["annotations"]}
        for caption in data["captions"]:
            sizes = [
                np.mean([areas[number] for number in phrase["annotation_ids"]])
                for phrase in caption["phrases"]
            ]
            if len(sizes) > 2:
                ranks = np.argsort(np.argsort(sizes))
                correlations.append(np.corrcoef(np.arange(len(sizes)), ranks)[0, 1])
    assert len(correlations) > 20
    assert abs(np.mean(correlations)) < 0.2  # largest first: -0.33


def test_captions_point_at_their_words_and_annotations(splits):
    for data in splits.values():
        annotations = {annotation["id"]: annotation for annotation in data["annotations"]}
        names = {category["id"]: category["name"] for category in data["categories"]}
        mentioned = []
        assert [c["image_id"] for c in data["captions"]] == [i["id"] for i in data["images"]]
        for caption in data["captions"]:
            for phrase in caption["phrases"]:
                start, end = phrase["span"]
                words = caption["caption"][start:end]
                referred = [annotations[number] for number in phrase["annotation_ids"]]
                mentioned += phrase["annotation_ids"]
                assert {item["image_id"] for item in referred} == {caption["image_id"]}
                assert {item["category_id"] for item in referred} == {phrase["category_id"]}
                assert words.startswith(referred[0]["colour"] + " ")
                if referred[0]["iscrowd"]:
                    assert caption["caption"] == f"many {words}"
                elif len(referred) == 1:
                    assert words.endswith(names[phrase["category_id"]])
        assert sorted(mentioned) == sorted(annotations)


@pytest.mark.parametrize(("split", "count"), [("train", 30), ("val", 12)])
def test_detectron2_loads_it_and_finds_the_images(mini, split, count):
    dicts = load_lvis_json(str(mini / f"{MINI}_{split}.json"), f"{mini}/", dataset_name=None)
    assert len(dicts) == count
    for record in dicts:
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"]) == (96, 96)
        assert all(0 <= item["category_id"] < 80 for item in record["annotations"])


def test_image_ids_are_unique_over_both_splits(splits):
    ids = [image["id"] for data in splits.values() for image in data["images"]]
    assert ids == [*range(1, 25), *range(37, 43), *range(25, 37)]


def test_the_last_training_images_have_no_base_object(mini, splits):
    loaded = load_lvis_json(
        str(mini / f"{MINI}_train_all.json"), f"{mini}/", None, extra_annotation_keys=["iscrowd"]
    )
    letters = [category["frequency"] for category in splits["train"]["categories"]]
    kinds = [
        {("crowd" if o["iscrowd"] else letters[o["category_id"]]) for o in record["annotations"]}
        for record in loaded
    ]
    assert all(kind & {"c", "f"} and "crowd" not in kind for kind in kinds[:REGULAR])
    assert kinds[REGULAR:] == [{"r"}, {"r"}, set(), set(), {"crowd"}, {"crowd"}]
    annotated = _found(splits["train"])[REGULAR:]
    assert [len(found) for found in annotated] == [0, 0, 0, 0, 1, 1]
    captions = [caption["caption"] for caption in splits["train"]["captions"][REGULAR:]]
    assert captions[:4] == ["nothing but clutter"] * 4


def test_training_sees_crowds_and_leaves_them_out(mini):
    name = f"{MINI}_train"
    file = str(mini / f"{name}.json")
    register_data_sets([name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(MetadataCatalog.get(name)), "json_file", file)
        records = _load_pictograms(file, f"{mini}/", name)
    assert [record["annotations"][0]["iscrowd"] for record in records[-2:]] == [1, 1]
    mapper = OpenVocabularyDatasetMapper(tiny_config("vild_text"), is_train=True)
    found = [len(mapper(record)["instances"]) for record in records]
    assert min(found[:REGULAR]) >= 1 and found[REGULAR:] == [0] * 6


def test_interrupted_generation_resumes_to_the_same_bytes(mini, tmp_path, monkeypatch):
    draw, drawn = generate._draw_chunk, []

    def failing(chunk):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(chunk.first)
        return draw(chunk)

    monkeypatch.setattr(generate, "_draw_chunk", failing)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tmp_path)
    assert not (tmp_path / MINI).exists()

    def counting(chunk):
        drawn.append((chunk.split, chunk.first))
        return draw(chunk)

    monkeypatch.setattr(generate, "_draw_chunk", counting)
    folder = _prepare(tmp_path)
    assert drawn == [0, ("train", 20), ("train", 28), ("val", 0)]
    assert _digests(folder) == _digests(mini)
    assert list(tmp_path.iterdir()) == [folder]


def test_second_run_changes_nothing(mini):
    before = {path: path.stat().st_mtime_ns for path in mini.rglob("*")}
    assert _prepare(mini.parent) == mini
    assert {path: path.stat().st_mtime_ns for path in mini.rglob("*")} == before


def test_other_arguments_are_refused_unless_overwritten(tmp_path):
    folder = _prepare(tmp_path, categories=20)
    before = _digests(folder)
    with pytest.raises(DifferentArgumentsError, match="categories was 20, now 24.*--overwrite"):
        _prepare(tmp_path, categories=24)
    assert _digests(folder) == before
    _prepare(tmp_path, categories=24, overwrite=True)
    data = json.loads((folder / f"{MINI}_val.json").read_text())
    assert len(data["categories"]) == 24


def _make_older(folder: Path) -> None:
    """As if an older version had drawn the set."""
    for path in folder.glob("*.json"):
        text = path.read_text()
        older = re.sub(r'("generator_version": ?)\d+', r"\g<1>2", text)
        assert older != text
        path.write_text(older)


def test_a_set_of_an_older_version_is_refused_or_replaced_but_never_mixed(tmp_path, mini):
    shutil.copytree(mini, tmp_path / MINI)
    _make_older(tmp_path / MINI)
    with pytest.raises(DifferentArgumentsError, match=r"version was 2, now \d.*--replace-older"):
        _prepare(tmp_path)
    file = tmp_path / MINI / f"{MINI}_train.json"
    with pytest.raises(DifferentArgumentsError, match=r"train.json: drawn by version 2 .*-older"):
        check_version(file)
    with pytest.raises(DifferentArgumentsError, match=r"categories was 80, now 20.*--overwrite"):
        _prepare(tmp_path, categories=20, replace_older=True)  # not what it is for
    assert _digests(_prepare(tmp_path, replace_older=True)) == _digests(mini)
    check_version(file)


def test_refused_arguments_leave_what_is_there(mini):
    before = _digests(mini)
    settings = generate.Arguments(MINI, 24, 12, 96, 300, 0)
    with pytest.raises(ValueError, match="cannot hold 300 categories"):
        generate.generate(mini.parent, settings, overwrite=True, progress=False)
    assert _digests(mini) == before


def test_interrupted_overwrite_keeps_the_old_data_set(mini, tmp_path, monkeypatch):
    folder = _prepare(tmp_path, categories=20)
    before = _digests(folder)

    def failing(chunk):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_draw_chunk", failing)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tmp_path, overwrite=True)
    assert _digests(folder) == before
    monkeypatch.undo()
    assert _digests(_prepare(tmp_path, overwrite=True)) == _digests(mini)


def test_many_categories_leave_the_mini_pair_at_eighty(mini):
    assert _prepare(mini.parent, categories=300) == mini


def test_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / MINI).mkdir()
    (tmp_path / MINI / "mine.txt").write_text("keep")
    with pytest.raises(DifferentArgumentsError, match=r"arguments\.json is missing"):
        _prepare(tmp_path)
    assert (tmp_path / MINI / "mine.txt").read_text() == "keep"


def test_size_below_the_least_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 64 px, got 32"):
        prepare(tmp_path, size=32)


def test_command_makes_the_set_and_reports_a_refusal_in_one_line(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("prepare_pictograms", COMMAND)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    arguments = ["--root", str(tmp_path), "--mini-only", "--workers", "1", "--categories", "10"]
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / MINI}\n"
    assert command.main([*arguments, "--seed", "7"]) == 2
    assert "seed was 0, now 7" in capsys.readouterr().err
