from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_scenes import (
    COCO_IDS,
    HEIGHT,
    NAMES,
    WIDTH,
    feed,
    make_dataset,
    no_detections,
    noisy_detections,
)
from PIL import Image

from ovd_d2.evaluation import OpenVocabularyCOCOEvaluator


@pytest.fixture
def dataset():
    return make_dataset(COCO_IDS, images=6)


@pytest.fixture
def pictures(tmp_path, dataset):
    """image id -> file"""
    (tmp_path / "val").mkdir()
    files = {}
    for one in dataset["images"]:
        files[one["id"]] = str(tmp_path / one["file_name"])
        pixels = np.random.default_rng(one["id"]).integers(0, 255, (HEIGHT, WIDTH, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(files[one["id"]])
    return files


def with_files(pairs, files):
    return [({**one, "file_name": files[one["image_id"]]}, output) for one, output in pairs]


def evaluate(register, dataset, tmp_path, pairs, *, failures=4, **metadata):
    register("ov_failures", dataset, "coco", **{"thing_classes": NAMES, **metadata})
    evaluator = OpenVocabularyCOCOEvaluator(
        "ov_failures", ("bbox",), output_dir=str(tmp_path / "out"), failures=failures
    )
    metrics = feed(evaluator, pairs)
    return metrics, tmp_path / "out" / "failures"


class Page(HTMLParser):
    """Tags opened, and text of the cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.text.append(data)


def test_sheets_and_index(register, dataset, tmp_path, pictures):
    pairs = with_files(noisy_detections(dataset, COCO_IDS), pictures)
    _, folder = evaluate(register, dataset, tmp_path, pairs)
    names = ["false_positives.png", "index.html", "missed_objects.png"]
    assert sorted(one.name for one in folder.iterdir()) == names
    page = Page((folder / "index.html").read_text())
    assert page.images == ["false_positives.png", "missed_objects.png"]
    text = "\n".join(page.text)
    assert "COCO (best 100 detections per image and category)" in text
    assert "ov_failures" in text and "pycocotools" in text
    assert text.count(".png") == page.tags.count("tr") - 2 <= 8  # a row each, and two headers
    for name in names[::2]:
        with Image.open(folder / name) as sheet:
            assert sheet.width > 4 * 250


def test_zero_switches_it_off(register, dataset, tmp_path, pictures):
    pairs = with_files(noisy_detections(dataset, COCO_IDS), pictures)
    _, folder = evaluate(register, dataset, tmp_path, pairs, failures=0)
    assert not folder.exists()


def test_no_detections(register, dataset, tmp_path, pictures):
    pairs = with_files(no_detections(dataset), pictures)
    _, folder = evaluate(register, dataset, tmp_path, pairs)
    assert sorted(one.name for one in folder.iterdir()) == ["index.html", "missed_objects.png"]
    assert "nothing detected here" in (folder / "index.html").read_text()


def test_no_novel_categories_and_old_sheets_go(register, dataset, tmp_path, pictures):
    folder = tmp_path / "out" / "failures"
    folder.mkdir(parents=True)
    (folder / "false_positives.png").write_bytes(b"of an older evaluation")
    pairs = with_files(noisy_detections(dataset, COCO_IDS), pictures)
    evaluate(register, dataset, tmp_path, pairs, base_classes=NAMES)
    assert [one.name for one in folder.iterdir()] == ["index.html"]
    assert "no novel categories" in (folder / "index.html").read_text()


@pytest.mark.parametrize("lost", ["file", "name"])
def test_a_missing_picture_is_named_and_the_numbers_stay(
    register, dataset, tmp_path, pictures, caplog, lost
):
    pairs = noisy_detections(dataset, COCO_IDS)
    expected, _ = evaluate(register, dataset, tmp_path, with_files(pairs, pictures))
    if lost == "file":
        for path in pictures.values():
            (tmp_path / path).unlink()
        pairs = with_files(pairs, pictures)
    evaluator = OpenVocabularyCOCOEvaluator(
        "ov_failures", ("bbox",), output_dir=str(tmp_path / "new"), failures=4
    )
    with caplog.at_level("ERROR"):
        assert feed(evaluator, pairs) == {"bbox": pytest.approx(expected["bbox"], nan_ok=True)}
    message = f"File '{tmp_path}/val/" if lost == "file" else "named no file"
    assert message in caplog.text
    assert (tmp_path / "new" / "failures" / "false_positives.png").is_file()


def test_names_are_escaped(register, dataset, tmp_path, pictures):
    names = [f"<script>alert('{name}')</script>" for name in NAMES]
    for record, name in zip(dataset["categories"], names, strict=True):
        record["name"] = name
    pairs = with_files(noisy_detections(dataset, COCO_IDS), pictures)
    _, folder = evaluate(register, dataset, tmp_path, pairs, names=names)
    page = Page((folder / "index.html").read_text())
    assert "script" not in page.tags
    assert any("<script>" in one for one in page.text)


def test_the_pictures_do_not_change_the_numbers(register, dataset, tmp_path, pictures):
    pairs = noisy_detections(dataset, COCO_IDS)
    metrics, _ = evaluate(register, dataset, tmp_path, with_files(pairs, pictures))
    plain = OpenVocabularyCOCOEvaluator("ov_failures", ("bbox",))
    assert json.dumps(metrics) == json.dumps(feed(plain, pairs))
