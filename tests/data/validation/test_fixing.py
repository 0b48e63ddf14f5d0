"""--fix: what is repaired validates clean, the rest is left and named."""

import copy
import json
import runpy
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from ovd_d2.data.annotation_files import read_annotations, write_annotations
from ovd_d2.data.validation.fixing import repair
from tests.annotation_sets import TEST, TRAIN, checked, lvis_set, rectangle, sound_set, written

main = runpy.run_path("datasets/check_annotations.py")["main"]
NAN = float("nan")


def each(part, **changes):
    def change(dataset):
        for entry in dataset[part]:
            for key, value in changes.items():
                entry[key] = value(entry) if callable(value) else copy.deepcopy(value)

    return change


def one(part, row=3, **changes):
    return lambda dataset: dataset[part][row].update(changes)


def without(part, key):
    def change(dataset):
        for entry in dataset[part]:
            del entry[key]

    return change


def renamed_images(new):
    def change(dataset):
        for image in dataset["images"]:
            image["id"] = new(image["id"])
        for annotation in dataset["annotations"]:
            annotation["image_id"] = new(annotation["image_id"])

    return change


def together(*changes):
    def change(dataset):
        for one_change in changes:
            one_change(dataset)

    return change


FIXABLE = {
    "nan box": (one("annotations", bbox=[1, NAN, 2, 3]), "not finite", 1),
    "flat box": (one("annotations", bbox=[1, 2, 0, 3]), "without width or height", 1),
    "box of strings": (one("annotations", bbox=["5", "4", "20", "20"]), "made numbers", 1),
    "box of three": (one("annotations", bbox=[1, 2, 3]), "not four numbers", 1),
    "no box": (lambda d: d["annotations"][3].pop("bbox"), "not four numbers", 1),
    "outside": (one("annotations", bbox=[99, 2, 5, 5]), "wholly outside", 1),
    "partly outside": (one("annotations", bbox=[50, 4, 30, 20]), "clipped", 1),
    "unknown image": (one("annotations", image_id=77), "of unknown images", 1),
    "unknown category": (one("annotations", category_id=77), "of unknown categories", 1),
    "second id": (one("annotations", id=1), "annotations numbered", 1),
    "no annotation id": (without("annotations", "id"), "annotations numbered", 12),
    "string annotation id": (each("annotations", id=lambda e: str(e["id"])), "made integers", 12),
    "iscrowd null": (each("annotations", iscrowd=None), "iscrowd made 0 or 1", 12),
    "iscrowd string": (each("annotations", iscrowd="0"), "iscrowd made 0 or 1", 12),
    "corners of polygons": (
        one("annotations", segmentation=[[5, 4, 25, 24]]),
        "made rectangles",
        1,
    ),
    "short beside sound": (
        one("annotations", segmentation=[*rectangle(5, 4, 20, 20), [1, 2]]),
        "polygons without three points removed",
        1,
    ),
    "string image ids": (renamed_images(lambda k: f"frame_{k}"), "image_id changed", 12),
    "digits as image ids": (renamed_images(str), "image_id changed", 12),
    "float image ids": (renamed_images(float), "image_id changed", 12),
    "hashes as image ids": (renamed_images(lambda k: 2**63 + k), "image_id changed", 12),
    "string category ids": (
        together(
            each("categories", id=lambda e: str(e["id"])),
            each("annotations", category_id=lambda e: str(e["category_id"])),
        ),
        "category_id changed",
        12,
    ),
    "string references": (
        each("annotations", image_id=lambda e: str(e["image_id"])),
        "image_id",
        12,
    ),
    "no area": (without("annotations", "area"), "area written", 12),
    "area null": (each("annotations", area=None), "area written", 12),
    "float sizes": (each("images", height=48.0), "height made an integer", 4),
    "no objects": (lambda d: d["annotations"].append(7), "annotations removed: no objects", 1),
}


@pytest.mark.parametrize("kind", FIXABLE)
def test_each_fixable_kind_validates_clean_afterwards(tmp_path, kind):
    change, said, count = FIXABLE[kind]
    dataset = sound_set()
    change(dataset)
    before = [checked(tmp_path, dataset, use) for use in (TRAIN, TEST)]
    assert any(report.problems or report.notices for report in before)
    repairs = repair(dataset, progress=False)
    assert repairs.left == []
    assert sum(n for what, n in repairs.done.items() if said in what) == count, repairs.done
    for use in (TRAIN, TEST):
        report = checked(tmp_path, dataset, use)
        assert (report.problems, report.notices) == ([], [])


def test_a_sound_file_is_not_changed():
    for dataset in (sound_set(), lvis_set()):
        expected = copy.deepcopy(dataset)
        for image in expected["images"]:
            if "coco_url" in image:
                image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        repair(dataset, progress=False)
        assert dataset == expected


def test_annotations_follow_their_renumbered_images():
    dataset = sound_set()
    renamed_images(lambda k: f"frame_{k}")(dataset)
    dataset["images"].reverse()
    boxes = {("frame_2", k): dataset["annotations"][3 + k]["bbox"] for k in range(3)}
    repair(dataset, progress=False)
    names = {image["id"]: image["file_name"] for image in dataset["images"]}
    assert names == {1: "4.png", 2: "3.png", 3: "2.png", 4: "1.png"}
    found = [one["bbox"] for one in dataset["annotations"] if one["image_id"] == 3]
    assert found == list(boxes.values())


def test_corners_are_changed_only_where_confirmed_and_suspected(tmp_path):
    dataset = sound_set()
    boxes = [list(one["bbox"]) for one in dataset["annotations"]]
    for annotation in dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    repairs = repair(dataset, corners=True, progress=False)
    assert [one["bbox"] for one in dataset["annotations"]] == boxes
    assert sum(repairs.done.values()) == 12
    repairs = repair(dataset, corners=True, progress=False)
    assert "do not look like corners" in repairs.left[0]
    assert [one["bbox"] for one in dataset["annotations"]] == boxes


def test_an_image_id_twice_is_left_and_loses_no_annotation(tmp_path):
    dataset = sound_set()
    dataset["images"][3]["id"] = 1
    repairs = repair(dataset, progress=False)
    assert "1 images with the id of another" in repairs.left[0]
    assert len(dataset["annotations"]) == 12
    assert checked(tmp_path, dataset).problems


def test_sizes_come_from_the_images(tmp_path):
    dataset = sound_set()
    for image in dataset["images"]:
        cv2.imwrite(str(tmp_path / image["file_name"]), np.zeros((48, 64, 3), np.uint8))
        del image["height"]
    (tmp_path / "4.png").unlink()
    assert "--images" in repair(copy.deepcopy(dataset), progress=False).left[0]
    repairs = repair(dataset, images=tmp_path, progress=False)
    assert [image.get("height") for image in dataset["images"]] == [48, 48, 48, None]
    assert "size of 4.png" in repairs.left[0]


def test_a_damaged_orientation_is_none(tmp_path):
    dataset = sound_set()
    tag = struct.pack("<HHI4s", 274, 2, 4, b"abc")  # the orientation, as text
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + tag + bytes(4)
    Image.new("RGB", (64, 48)).save(tmp_path / dataset["images"][0]["file_name"], exif=exif)
    del dataset["images"][0]["height"]
    repair(dataset, images=tmp_path, progress=False)
    assert dataset["images"][0]["height"] == 48


def test_the_tool_writes_a_copy_and_never_over_its_input(tmp_path, capsys):
    dataset = sound_set()
    dataset["info"] = {"hash": 2**70}
    dataset["annotations"][0]["bbox"][0] = NAN
    path, target = written(tmp_path, dataset), tmp_path / "fixed.json"
    original = path.read_bytes()
    for wrong in (path, tmp_path / "." / "train.json"):
        with pytest.raises(SystemExit, match="is the input"):
            main([str(path), "--fix", str(wrong), "--overwrite"])
    with pytest.raises(SystemExit, match="1 problem"):
        main([str(path)])
    main([str(path), "--fix", str(target)])
    said = capsys.readouterr().out
    assert "annotations removed: box not finite" in said and "No problem found." in said
    fixed = json.loads(target.read_text())
    assert len(fixed["annotations"]) == 11 and fixed["info"]["hash"] == 2**70
    assert path.read_bytes() == original
    with pytest.raises(SystemExit, match="exists"):
        main([str(path), "--fix", str(target)])
    main([str(path), "--fix", str(target), "--overwrite"])


def test_the_tool_fails_where_problems_are_left(tmp_path, capsys):
    dataset = sound_set()
    dataset["images"][3]["id"] = 1
    path = written(tmp_path, dataset)
    with pytest.raises(SystemExit, match="problem"):
        main([str(path), "--fix", str(tmp_path / "fixed.json")])
    assert "left: 1 images with the id of another" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="neither a file nor a registered data set"):
        main(["nobody"])


def test_the_tool_leaves_out_a_byte_order_mark(tmp_path):
    path = written(tmp_path, sound_set())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    main([str(path), "--test", "--fix", str(tmp_path / "fixed.json")])
    assert json.loads((tmp_path / "fixed.json").read_text()) == sound_set()


def test_files_are_written_as_json_writes_them(tmp_path):
    dataset = {**sound_set(images=400), "info": {"year": 2020}}
    path = tmp_path / "a.json"
    write_annotations(path, dataset, overwrite=False)
    assert path.read_text() == json.dumps(dataset)
    assert read_annotations(path) == dataset
