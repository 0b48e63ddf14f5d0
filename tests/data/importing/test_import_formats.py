"""Every format gives the same boxes; where a format has a way of its own, that too."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from PIL import Image

from ovd_d2.annotations_out import coco_dataset
from ovd_d2.data.importing.folder import Wish, import_dataset
from ovd_d2.data.importing.formats import READERS, format_of
from ovd_d2.data.importing.found import Choices
from ovd_d2.data.importing.source import Source
from ovd_d2.errors import SetupError
from tests.own_formats import (
    HEIGHT,
    NAMES,
    TRUTH,
    WIDTH,
    WRITERS,
    coco,
    corners,
    draw,
    label_studio,
    voc_xml,
    yolo_line,
)

ALL = Wish(share=0)


def load(root, wish=ALL, **options):
    return import_dataset(Source(root), wish, **options)


def boxes(dataset):
    """file -> [(name, XYXY)], as TRUTH has it."""
    names = {one["id"]: one["name"] for one in dataset["categories"]}
    found = {one["id"]: (Path(one["file_name"]).name, []) for one in dataset["images"]}
    for one in dataset["annotations"]:
        x, y, w, h = one["bbox"]
        box = tuple(round(value, 3) for value in (x, y, x + w, y + h))
        found[one["image_id"]][1].append((names[one["category_id"]], box))
    return dict(found.values())


def reasons(imported):
    return {(row[0], row[1], row[3]): row[2] for row in imported.account.rows()}


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_the_boxes_that_were_written(tmp_path, name):
    WRITERS[name](tmp_path / "data")
    assert format_of(Source(tmp_path / "data")) == name
    imported = load(tmp_path / "data")
    assert boxes(imported.splits["train"]) == TRUTH
    assert imported.account.cases == []


def test_there_is_a_writer_for_each_reader():
    assert set(WRITERS) == set(READERS)


@pytest.mark.parametrize("name", ["voc", "yolo", "coco"])
def test_supervision_reads_the_same_boxes(tmp_path, name):
    supervision = pytest.importorskip("supervision", reason="an extra of this package")
    root = tmp_path / "data"
    WRITERS[name](root)
    read = supervision.DetectionDataset
    if name == "voc":
        theirs = read.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    elif name == "yolo":
        folders = str(root / "images"), str(root / "labels")
        theirs = read.from_yolo(*folders, data_yaml_path=str(root / "data.yaml"))
    else:
        file = root / "annotations/instances_default.json"
        theirs = read.from_coco(str(root / "images"), str(file))
    found = {
        Path(file).name: [
            (theirs.classes[k], tuple(round(float(value), 3) for value in box))
            for k, box in zip(one.class_id, one.xyxy, strict=True)
        ]
        for file, one in theirs.annotations.items()
    }
    ours = boxes(load(root).splits["train"])
    assert found.keys() == ours.keys()
    for file, objects in ours.items():
        assert [name for name, _ in found[file]] == [name for name, _ in objects]
        assert np.allclose([b for _, b in found[file]], [b for _, b in objects], atol=2e-3)


class TestVoc:
    def write(self, root, xml):
        draw(root, ["a.png"])
        (root / "a.xml").write_text(xml)

    def test_pixels_count_from_1_unless_told_otherwise(self, tmp_path):
        self.write(tmp_path, voc_xml("a.png", [("cat", (-1, 4, 20, 20))]))  # xmin 0
        imported = load(tmp_path)
        assert boxes(imported.splits["train"])["a.png"] == [("cat", (-1, 4, 20, 20))]
        assert "--from-zero" in imported.account.notes[0]
        zero = load(tmp_path, Wish(share=0, choices=Choices(from_zero=True)))
        assert boxes(zero.splits["train"])["a.png"] == [("cat", (0, 5, 20, 20))]
        assert zero.account.notes == []

    def test_difficult_objects_are_taken_or_left_out_and_counted(self, tmp_path):
        xml = voc_xml("a.png", [("cat", (2, 2, 9, 9)), ("dog", (2, 2, 9, 9))])
        self.write(tmp_path, xml.replace("<difficult>0", "<difficult>1", 1))
        assert len(load(tmp_path).splits["train"]["annotations"]) == 2
        without = load(tmp_path, Wish(share=0, choices=Choices(difficult=False)))
        assert boxes(without.splits["train"])["a.png"] == [("dog", (2, 2, 9, 9))]
        assert reasons(without) == {("left out", "box", "marked difficult (--drop-difficult)"): 1}

    def test_lists_of_imagesets_are_the_splits(self, tmp_path):
        WRITERS["voc"](tmp_path)
        lists = tmp_path / "ImageSets/Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a b\r\n")
        (lists / "val.txt").write_text("bäh\n", encoding="utf-8")
        (lists / "cat_train.txt").write_text("a b 1\nc -1\n")
        imported = load(tmp_path)
        assert set(boxes(imported.splits["train"])) == {"a b.png"}
        assert set(boxes(imported.splits["val"])) == {"bäh.png"}
        assert ("left out", "image", "in no list of ImageSets/Main") in reasons(imported)

    def test_polygons_become_masks(self, tmp_path):
        ring = "".join(
            f"<{a}{k}>{v}</{a}{k}>" for k in (1, 2, 3) for a, v in (("x", k), ("y", 9 - k * k))
        )
        xml = voc_xml("a.png", [("cat", (0, 0, 9, 9))])
        self.write(tmp_path, xml.replace("</object>", f"<polygon>{ring}</polygon></object>"))
        (one,) = load(tmp_path).splits["train"]["annotations"]
        assert one["segmentation"] == [[0, 7, 1, 4, 2, -1]]

    @pytest.mark.parametrize(
        "doctype",
        [
            '<!DOCTYPE a [<!ENTITY l "lol"><!ENTITY m "&l;&l;&l;&l;">]>',
            '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
        ],
    )
    def test_a_document_type_is_refused(self, tmp_path, doctype):
        self.write(tmp_path, doctype + voc_xml("&m;", [("cat", (0, 0, 9, 9))]))
        (tmp_path / "b.xml").write_text(voc_xml("a.png", [("dog", (0, 0, 9, 9))]))
        imported = load(tmp_path)
        assert boxes(imported.splits["train"])["a.png"] == [("dog", (0, 0, 9, 9))]
        (case,) = imported.account.cases
        assert case.where.startswith("a.xml: it declares a document type")

    def test_utf16_hides_no_document_type(self, tmp_path):
        self.write(tmp_path, "")
        xml = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY l "cat">]>'
        xml += voc_xml("a.png", [("&l;", (0, 0, 9, 9))])
        (tmp_path / "a.xml").write_text(xml, encoding="utf-16")
        with pytest.raises(SetupError, match="document type"):
            load(tmp_path, format="voc")


class TestYolo:
    def write(self, root, *lines, yaml="names: {0: cat, 1: dog}\n"):
        draw(root / "train/images", ["a.png"])
        (root / "train/labels").mkdir()
        (root / "train/labels/a.txt").write_text("\n".join(lines))
        (root / "data.yaml").write_text(yaml)

    def test_roboflows_folders_and_their_wrong_paths(self, tmp_path):
        yaml = "train: ../train/images\nval: ../valid/images\nnames: [cat, dog]\n"
        self.write(tmp_path, yolo_line(0, (8, 8, 24, 24)), yaml=yaml)
        draw(tmp_path / "valid/images", ["b.png"])
        (tmp_path / "valid/labels").mkdir()
        (tmp_path / "valid/labels/b.txt").write_text(yolo_line(1, (0, 0, 32, 24)))
        imported = load(tmp_path)
        assert boxes(imported.splits["train"]) == {"a.png": [("cat", (8, 8, 24, 24))]}
        assert boxes(imported.splits["val"]) == {"b.png": [("dog", (0, 0, 32, 24))]}

    def test_polygons_and_turned_boxes_have_a_mask_and_the_box_around_it(self, tmp_path):
        self.write(tmp_path, "1 0.25 0.25 0.5 0.25 0.5 0.75", "0 .5 .25 .75 .5 .5 .75 .25 .5")
        first, second = load(tmp_path).splits["train"]["annotations"]
        assert first["bbox"] == [16, 12, 16, 24]
        assert first["segmentation"] == [[16, 12, 32, 12, 32, 36]]
        assert second["bbox"] == [16, 12, 32, 24]

    def test_keypoints_are_not_corners(self, tmp_path):
        yaml = "kpt_shape: [2, 3]\nnames: [cat]\n"
        line = yolo_line(0, (8, 8, 24, 24)) + " .1 .2 2 .3 .4 1"
        self.write(tmp_path, line, yaml=yaml)
        (one,) = load(tmp_path).splits["train"]["annotations"]
        assert one["bbox"] == pytest.approx([8, 8, 16, 16], abs=1e-3)
        assert "segmentation" not in one

    def test_lines_that_are_none_are_left_out_by_number(self, tmp_path):
        good = yolo_line(0, (8, 8, 24, 24))
        self.write(
            tmp_path,
            good,
            "0,1 0,2",
            good + " 0.9",
            "2 .5 .5 .1 .1",
            "-1 .5 .5 .1 .1",
            "0 1",
            "0 .5 .5 0 .1",
        )
        imported = load(tmp_path)
        assert len(imported.splits["train"]["annotations"]) == 1
        places = [case.where.rsplit(" ", 1)[1] for case in imported.account.cases]
        assert places == ["2", "3", "4", "5", "6", "7"]
        assert imported.account.cases[-1].why == "its box has no width or height"

    def test_images_without_and_labels_without(self, tmp_path):
        self.write(tmp_path, yolo_line(0, (8, 8, 24, 24)))
        draw(tmp_path / "train/images", ["empty.png"])
        (tmp_path / "train/labels/lost.txt").write_text("")
        imported = load(tmp_path)
        assert len(imported.splits["train"]["images"]) == 1
        assert sorted(reasons(imported).values()) == [1, 1]
        wish = Wish(share=0, background=True)
        assert set(boxes(load(tmp_path, wish).splits["train"])) == {"a.png", "empty.png"}


class TestCoco:
    def write(self, folder, content, names=tuple(TRUTH)):
        draw(folder, names)
        (folder / "_annotations.coco.json").write_text(json.dumps(content))

    def test_roboflows_folders(self, tmp_path):
        content = coco({"a b.png": TRUTH["a b.png"]})
        content["categories"] = [{"id": 9, "name": "animals", "supercategory": "none"}] + [
            {**one, "supercategory": "animals"} for one in content["categories"]
        ]
        self.write(tmp_path / "train", content, ["a b.png"])
        self.write(tmp_path / "valid", coco({"c.png": []}), ["c.png"])
        self.write(tmp_path / "test", coco({"bäh.png": TRUTH["bäh.png"]}), ["bäh.png"])
        imported = load(tmp_path)
        assert {split: set(boxes(one)) for split, one in imported.splits.items()} == {
            "train": {"a b.png"},
            "val": {"c.png"},
            "test": {"bäh.png"},
        }
        assert [one["name"] for one in imported.splits["test"]["categories"]] == NAMES
        assert reasons(imported) == {("left out", "category", "it only stands above the others"): 1}

    def test_what_the_file_does_not_list_is_left_out(self, tmp_path):
        content = coco()
        rows = content["annotations"]
        rows[0]["image_id"], rows[1]["category_id"] = 99, 5
        content["images"].append({"id": 50, "file_name": "gone.png"})
        content["annotations"] += [{"id": 60, "image_id": 7, "category_id": 0, "bbox": [1, 2]}]
        self.write(tmp_path, content)
        imported = load(tmp_path)
        assert boxes(imported.splits["train"])["bäh.png"] == TRUTH["bäh.png"]
        assert boxes(imported.splits["train"])["a b.png"] == []
        assert len(imported.account.cases) == 4

    def test_masks_and_crowds_stay(self, tmp_path):
        content = coco()
        ring = corners((10, 8, 30, 28))
        rle = mask_utils.encode(np.ones((HEIGHT, WIDTH), np.uint8, order="F"))
        rle["counts"] = rle["counts"].decode()
        content["annotations"][0]["segmentation"] = [ring]
        content["annotations"][1] |= {"segmentation": rle, "iscrowd": 1}
        content["annotations"][2]["segmentation"] = {"size": [5, 5], "counts": "abc"}
        self.write(tmp_path, content)
        imported = load(tmp_path)
        first, second, third = imported.splits["train"]["annotations"]
        assert first["segmentation"] == [ring] and first["area"] == 400
        assert second["segmentation"] == rle and second["iscrowd"] == 1
        assert "segmentation" not in third
        assert "RLE" in imported.account.cases[0].why

    def test_the_set_that_predict_writes_comes_back(self, tmp_path):
        draw(tmp_path)
        found = [
            {
                "file": str(tmp_path / file),
                "height": HEIGHT,
                "width": WIDTH,
                "objects": [
                    {"name": n, "score": 0.9, "box": b, "polygons": [corners(b)]} for n, b in ones
                ],
            }
            for file, ones in TRUTH.items()
        ]
        (tmp_path / "coco.json").write_text(json.dumps(coco_dataset(found, NAMES)))
        imported = load(tmp_path)
        assert boxes(imported.splits["train"]) == TRUTH
        assert all("segmentation" in one for one in imported.splits["train"]["annotations"])


class TestLabelme:
    def write(self, root, *shapes, **keys):
        draw(root, ["a.png"])
        content = {"shapes": list(shapes), "imagePath": "a.png"}
        content |= {"imageWidth": WIDTH, "imageHeight": HEIGHT}
        (root / "a.json").write_text(json.dumps(content | keys))

    def shape(self, kind, *points, label="cat", **keys):
        return {"label": label, "shape_type": kind, "points": [list(p) for p in points], **keys}

    def test_a_group_is_one_object(self, tmp_path):
        one = self.shape("polygon", (0, 0), (8, 0), (8, 8), group_id=1)
        other = self.shape("polygon", (20, 20), (28, 20), (28, 28), group_id=1)
        alone = self.shape("polygon", (30, 30), (38, 30), (38, 38), group_id=2)
        self.write(tmp_path, one, other, alone)
        joined, single = load(tmp_path).splits["train"]["annotations"]
        assert joined["bbox"] == [0, 0, 28, 28] and len(joined["segmentation"]) == 2
        assert single["bbox"] == [30, 30, 8, 8]

    def test_masks_circles_and_what_has_no_box(self, tmp_path):
        pixels = np.zeros((4, 6), np.uint8)
        pixels[1:3] = 255
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        text = base64.b64encode(stream.getvalue()).decode()
        self.write(
            tmp_path,
            self.shape("mask", (10, 20), (15, 23), mask=text),
            self.shape("circle", (30, 20), (33, 24), label="dog"),
            self.shape("line", (1, 1), (5, 5)),
            self.shape("mask", (10, 20), (15, 23), mask="no png"),
        )
        imported = load(tmp_path)
        mask, circle = imported.splits["train"]["annotations"]
        assert mask["bbox"] == [10, 20, 6, 4]
        decoded = mask_utils.decode(mask["segmentation"])
        assert decoded.sum() == 12 and decoded[21:23, 10:16].all()
        assert circle["bbox"] == [25, 15, 10, 10]
        assert [case.why for case in imported.account.cases] == [
            "a line has no box",
            "its entry is not as the format has it",
        ]


class TestCvat:
    def write(self, root, shapes, subset="", meta=""):
        draw(root, ["a.png"])
        text = f'<annotations>{meta}<image name="a.png" width="{WIDTH}" height="{HEIGHT}"'
        text += f' subset="{subset}">{shapes}</image></annotations>'
        (root / "annotations.xml").write_text(text)

    def test_polygons_masks_and_turned_boxes(self, tmp_path):
        self.write(
            tmp_path,
            '<polygon label="cat" points="1,2;9,2;9,8.5"/>'
            '<mask label="dog" rle="2, 4" left="10" top="20" width="3" height="2"/>'
            '<box label="cat" xtl="20" ytl="10" xbr="40" ybr="14" rotation="90"/>'
            '<points label="cat" points="1,2"/><tag label="cat"/>',
            subset="Validation",
            meta="<meta><job><labels><label><name>dog</name></label></labels></job></meta>",
        )
        imported = load(tmp_path)
        polygon, mask, turned = imported.splits["val"]["annotations"]
        assert polygon["bbox"] == [1, 2, 8, 6.5]
        assert mask["bbox"] == [10, 20, 3, 2]
        whole = mask_utils.decode(mask["segmentation"])
        assert whole[20:22, 10:13].tolist() == [[0, 0, 1], [1, 1, 1]] and whole.sum() == 4
        assert turned["bbox"] == pytest.approx([28, 2, 4, 20])
        assert [(one.treatment, one.what) for one in imported.account.cases] == [
            ("changed", "box"),
            ("left out", "box"),
        ]

    def test_tracks_of_a_video_are_refused(self, tmp_path):
        draw(tmp_path, ["a.png"])
        (tmp_path / "annotations.xml").write_text("<annotations><track/></annotations>")
        with pytest.raises(SetupError, match="CVAT for images"):
            load(tmp_path)


class TestLabelStudio:
    def write(self, root, tasks):
        draw(root)
        (root / "export.json").write_text(json.dumps(tasks))

    def test_predictions_of_our_own_are_taken_when_asked_for(self, tmp_path):
        self.write(tmp_path, label_studio())
        with pytest.raises(SetupError, match="--predictions"):
            load(tmp_path)
        imported = load(tmp_path, Wish(share=0, choices=Choices(predictions=True)))
        assert boxes(imported.splits["train"]) == TRUTH

    def test_addresses_turned_boxes_polygons_and_cancelled_annotations(self, tmp_path):
        task = label_studio({"a b.png": [("cat", (20, 10, 40, 14))]})[0]
        region = task["predictions"][0]["result"][0]
        turned = {**region, "value": {**region["value"], "rotation": 90}}
        points = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["dog"]}
        polygon = {**region, "type": "polygonlabels", "value": points}
        brush = {**region, "type": "brushlabels"}
        done = {"result": [turned, polygon, brush]}
        data = {"image": "/data/local-files/?d=photos%2Fa%20b.png"}
        cancelled = {"was_cancelled": True, "result": [region]}
        self.write(tmp_path, [{"id": 1, "data": data, "annotations": [cancelled, done, done]}])
        imported = load(tmp_path)
        first, second = imported.splits["train"]["annotations"]
        assert first["bbox"] == pytest.approx([16, 10, 4, 20])
        assert second["segmentation"] == [[0, 0, 32, 0, 32, 24]]
        assert len(imported.account.cases) == 4 + 1  # two images without, an annotation, ...

    def test_the_short_form_is_refused(self, tmp_path):
        self.write(tmp_path, [{"id": 1, "image": "a b.png", "label": []}])
        with pytest.raises(SetupError, match="export it as JSON"):
            load(tmp_path)


class TestCsv:
    def write(self, root, text):
        draw(root, ["a.png"])
        (root / "boxes.csv").write_text(text)

    @pytest.mark.parametrize(
        ("text", "row"),
        [
            ("image,label,x1,y1,x2,y2\na.png,cat,1,2,9,8\n\na.png,cat,1,2,9,5,8\n", 4),
            ('image,label,x1,y1,x2,y2\na.png,cat,1,2,"9,5",8\n', 2),
            ("image;label;x1;y1;x2;y2\na.png;cat;1;2;9,5;8\n", 2),
            ("image,label,x1,y1,x2,y2\na.png,cat,1,2,,8\n", 2),
        ],
    )
    def test_a_number_that_is_none_is_named_by_its_row(self, tmp_path, text, row):
        self.write(tmp_path, text)
        with pytest.raises(SetupError, match=rf"boxes.csv, row {row}: ") as error:
            load(tmp_path)
        assert len(error.value.problems) == 1

    def test_sides_semicolons_and_splits(self, tmp_path):
        draw(tmp_path, ["b.png"])
        rows = "file;name;x;y;w;h;split\r\na.png;cat;1;2.5;8;6;train\r\nb.png;cat;0;0;9;9;valid\r\n"
        self.write(tmp_path, rows)
        imported = load(tmp_path)
        assert boxes(imported.splits["train"]) == {"a.png": [("cat", (1, 2.5, 9, 8.5))]}
        assert set(boxes(imported.splits["val"])) == {"b.png"}

    def test_without_a_header_it_says_what_is_expected(self, tmp_path):
        self.write(tmp_path, "a.png,1,2,9,8,cat\n")
        with pytest.raises(SetupError, match="file, name, xmin, ymin, xmax, ymax"):
            load(tmp_path)


def test_a_folder_that_fits_two_formats_or_none_is_asked_about(tmp_path):
    WRITERS["voc"](tmp_path / "data")
    (tmp_path / "data/boxes.csv").write_text("file,name,x1,y1,x2,y2\n")
    with pytest.raises(SetupError, match="looks like voc and csv: choose by --format"):
        load(tmp_path / "data")
    assert load(tmp_path / "data", format="voc").format == "voc"
    with pytest.raises(SetupError, match="labelme"):
        load(tmp_path / "data/JPEGImages")
