"""What real data sets and people's files led to: each is found before the work starts, by name."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pycocotools import mask as mask_utils

from ovd_d2.vocabulary import Vocabulary
from tests.small_sets import SIDE, SmallSet, run_tool

SOUND = "Everything needed is there and fits."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A vocabulary and a trained detector, made by the tools once."""
    place = SmallSet(tmp_path_factory.mktemp("made"))
    done = place.run("build_vocabulary.py", "--dataset", "my_train", "--output", place.vocabulary)
    assert done.code == 0, done.text
    done = place.fit()
    assert done.code == 0, done.text
    return place


@pytest.fixture
def case(tmp_path, made):
    """A sound set with its vocabulary, to be spoilt."""
    place = SmallSet(tmp_path)
    shutil.copy(made.vocabulary, place.vocabulary)
    return place


def assert_refused(done, *words):
    """Ends with status 1 and a message that holds every word."""
    assert done.code == 1, done.text[-2000:]
    assert "Traceback" not in done.text
    assert not [word for word in words if word not in done.text], done.text[-3000:]


def assert_both_refuse(case, *words, options=()):
    """check_setup says it, and so does the training before its first iteration."""
    assert_refused(case.check(*options), *words)
    assert_refused(case.fit(*options), *words)
    assert not (case.folder / "trained").exists()


def spoil(dataset, key, value, which=slice(None)):
    for one in dataset["annotations"][which]:
        one[key] = value


def test_a_sound_set(case):
    done = case.check()
    assert done.code == 0 and SOUND in done.text


def test_all_crowd(case):
    spoil(case.train, "iscrowd", 1)
    words = "none of its 2 base categories has an annotation that is not a crowd (12 crowds)"
    assert_both_refuse(case, "train.json", words)


@pytest.mark.parametrize("empty", ["absent", [], None])
def test_boxes_without_masks(case, empty):
    for one in case.train["annotations"]:
        if empty == "absent":
            del one["segmentation"]
        else:
            one["segmentation"] = empty
    assert_both_refuse(case, "train.json", "12", "MODEL.MASK_ON False")
    assert SOUND in case.check("MODEL.MASK_ON", False).text


def test_corner_polygons(case):
    for one in case.train["annotations"][::2]:
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x + w, y + h]]
    assert_both_refuse(case, "train.json", "6 of 12", "annotation 1")
    done = case.fit("MODEL.MASK_ON", False)
    assert done.code == 0, done.text[-2000:]
    assert "Filtered out" not in done.text


def deep_grey(path):
    Image.fromarray(np.full((SIDE, SIDE), 1000, np.uint16)).save(path)


def test_grey_of_16_bits(case, made):
    deep_grey(case.folder / "images" / "1.png")
    assert_both_refuse(case, "1.png", "more than 8 bits")
    done = predict(case, made, case.folder / "images" / "1.png")
    assert_refused(done, "1.png", "more than 8 bits")


def predict(case, made, *files, output="found"):
    return case.run(
        "predict.py",
        *("--config-file", "configs/pictograms/vild_text.yaml", "--input", *files),
        *("--output", case.folder / output),
        *("MODEL.OVD.VOCABULARY", made.vocabulary, "MODEL.WEIGHTS", made.weights),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
    )


def test_an_image_id_twice(case):
    case.train["images"][3]["id"] = 1
    assert_both_refuse(case, "train.json", "1.png", "4.png", "image id 1")


@pytest.mark.parametrize("kind", ["frame_{:03d}", "{}", "huge", "float"])
def test_image_ids_that_no_store_can_hold(case, kind):
    def renamed(number):
        if kind == "huge":
            return 2**63 + number
        return number + 0.5 if kind == "float" else kind.format(number)

    for image in case.train["images"]:
        image["id"] = renamed(image["id"])
    for one in case.train["annotations"]:
        one["image_id"] = renamed(one["image_id"])
    assert_both_refuse(case, "train.json", str(renamed(1)), "integer")


def test_iscrowd_null(case):
    spoil(case.train, "iscrowd", None)
    spoil(case.val, "iscrowd", None)
    done = case.fit()
    assert done.code == 0, done.text[-2000:]
    assert (case.folder / "trained" / "inference" / "results.json").is_file()


@pytest.mark.parametrize(
    ("part", "keys", "said"),
    [
        ("annotations", ["id"], "12 of 12"),
        ("images", ["height", "width"], "4 of 4"),
        ("images", ["file_name"], "coco_url"),
        ("categories", ["name"], "3 of 3"),
        ("categories", ["id"], "3 of 3"),
    ],
)
def test_keys_that_are_missing(case, part, keys, said):
    for one in case.train[part]:
        for key in keys:
            del one[key]
        if keys == ["file_name"]:
            one["coco_url"] = f"http://images.example/train2017/{one['id']}.png"
    assert_refused(case.check(), "train.json", keys[0], said)
    if part == "categories":
        words = ("--dataset", "my_train", "--output", case.folder / "new.safetensors")
        assert_refused(case.run("build_vocabulary.py", *words), "train.json", keys[0])


def test_a_names_file_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("ant\nbee\n".encode("utf-8-sig"))
    output = tmp_path / "vocabulary.safetensors"
    done = run_tool("build_vocabulary.py", "--names-file", file, "--output", output)
    assert done.code == 0, done.text
    assert list(Vocabulary.load(output).names) == ["ant", "bee"]
    file.write_bytes(b"\xff\xfe\x00\xd8")  # half a pair: no text in any encoding
    done = run_tool("build_vocabulary.py", "--names-file", file, "--output", output)
    assert_refused(done, "names.txt")


BAD_BOXES = {
    "nan": [5, float("nan"), 20, 20],
    "infinite": [5, 4, float("inf"), 20],
    "strings": ["5", "4", "20", "20"],
    "null": None,
    "three numbers": [5, 4, 20],
    "flat": [5, 4, 0, 20],
    "negative": [25, 24, -20, -20],
    "outside": [200, 200, 20, 20],
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES.keys())
@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_that_are_none(case, box, split):
    dataset = getattr(case, split)
    dataset["annotations"][4]["bbox"] = box
    assert_refused(case.check(), f"{split}.json", "1 of 12", "annotation 5")


def test_a_box_that_is_missing(case):
    del case.train["annotations"][4]["bbox"]
    assert_both_refuse(case, "train.json", "bbox", "annotation 5")


def test_corners_in_place_of_sides(case):
    for one in case.train["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]
    assert_refused(case.check(), "train.json", "8 of 12", "corners")


def test_images_renumbered(case, made):
    """The stores of the first export do not fit the second, whose ids are the same numbers."""
    make_stores(case, made)
    vild = ("MODEL.VILD.DISTILLATION.CACHE", case.folder / "cache")
    assert SOUND in case.check(*vild, config="vild_ensemble").text
    for image in case.train["images"]:
        image["id"] = 5 - image["id"]
    for one in case.train["annotations"]:
        one["image_id"] = 5 - one["image_id"]
    words = ("other images under these ids", "1.png", "4.png")
    assert_refused(case.check(*vild, config="vild_ensemble"), *words)
    assert_refused(case.fit(*vild, config="vild_ensemble"), *words)
    assert_refused(build_cache(case, "again"), *words)


def make_stores(case, made):
    done = extracted(case, made)
    assert done.code == 0, done.text[-2000:]
    done = build_cache(case, "cache")
    assert done.code == 0, done.text[-2000:]


def build_cache(case, output):
    return case.run(
        "cache.py",
        *("build", "--dataset", "my_train", "--proposals", case.folder / "proposals"),
        *("--output", case.folder / output),
        *("--architecture", "Pictogram-RN", "--pretrained", "shipped"),
    )


def extracted(case, made):
    words = case.arguments("MODEL.WEIGHTS", made.weights)
    return case.run(
        "extract_proposals.py",
        *(*words[:2], "--dataset", "my_train", "--output", case.folder / "proposals", *words[2:]),
    )


def test_proposals_need_no_objects_but_sound_images(case, made):
    case.train["annotations"] = []
    done = extracted(case, made)
    assert done.code == 0, done.text[-2000:]
    deep_grey(case.folder / "images" / "1.png")
    assert_refused(extracted(case, made), "--dataset 'my_train'", "1.png", "more than 8 bits")


def test_one_bad_image_does_not_lose_the_others(case, made):
    damaged = case.folder / "images" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:-600])
    assert_refused(predict(case, made, case.folder / "images" / "*.png"), "3.png")
    found = json.loads((case.folder / "found" / "detections.json").read_text())
    assert sorted(name.rsplit("/")[-1] for name in found) == ["1.png", "2.png", "4.png"]


def test_predictions_do_not_overwrite_their_input(case, made):
    before = {file: file.read_bytes() for file in (case.folder / "images").iterdir()}
    done = predict(case, made, case.folder / "images" / "*.png", output="images")
    assert_refused(done, "overwrite", "--output")
    assert {file: file.read_bytes() for file in before} == before


def test_missing_images_of_ones_own_name_the_entry(case):
    for image in case.val["images"]:
        image["file_name"] = f"sub/{image['file_name']}"
    done = case.check()
    assert_refused(done, "4 images are missing", "the image_root of 'my_val' in", "my_data.yaml")
    assert "DETECTRON2_DATASETS" not in done.text


def test_boxes_outside_of_a_size_that_is_wrong(case):
    for image in case.train["images"]:
        image["width"] = SIDE // 2
    assert_refused(case.check(), "wholly outside of their image", "4 images are of another size")


def test_masks_of_some_test_objects_do_not_matter_to_a_model_of_boxes(case):
    case.val["annotations"][0]["segmentation"] = None
    assert_both_refuse(case, "val.json", "1 of 12", "set MODEL.MASK_ON False")
    done = case.fit("MODEL.MASK_ON", False)
    assert done.code == 0, done.text[-2000:]


def test_a_mask_format_that_is_none(case):
    assert_both_refuse(case, "INPUT.MASK_FORMAT: 'rle'", options=("INPUT.MASK_FORMAT", "rle"))


def test_rle_masks(case):
    for one in case.train["annotations"]:
        rle = mask_utils.frPyObjects(one["segmentation"], SIDE, SIDE)
        mask = mask_utils.decode(rle)[..., 0]
        one["segmentation"] = uncompressed(mask)
    assert_both_refuse(case, "train.json", "12 of 12", "INPUT.MASK_FORMAT bitmask")
    assert case.fit("INPUT.MASK_FORMAT", "bitmask").code == 0


def uncompressed(mask):
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"counts": counts if not flat[0] else [0, *counts], "size": list(mask.shape)}


def test_a_test_set_in_another_order_is_matched_by_name(case, made):
    """The numbers are those of the same set with its categories in the vocabulary's order."""
    evaluate = ("MODEL.WEIGHTS", made.weights)
    assert case.fit(*evaluate, flags=("--eval-only",)).code == 0
    before = json.loads((case.folder / "trained/inference/results.json").read_text())
    for one in case.val["categories"]:
        one["id"] = 4 - one["id"]
    for one in case.val["annotations"]:
        one["category_id"] = 4 - one["category_id"]
    done = case.fit(*evaluate, flags=("--eval-only",))
    assert done.code == 0, done.text[-2000:]
    after = json.loads((case.folder / "trained/inference/results.json").read_text())
    assert after["bbox"] == before["bbox"] and after["bbox"]["AP"] is not None


def test_a_training_set_in_another_order_is_matched_by_name(case):
    for one in case.train["categories"]:
        one["id"] = 4 - one["id"]
    done = case.check()
    assert done.code == 0 and SOUND in done.text


def test_a_test_set_of_other_names_is_refused(case):
    case.val["categories"][2]["name"] = "dog"
    assert_both_refuse(case, "my_val", "'dog'")


@pytest.mark.parametrize("flags", [(), ("--eval-only",)], ids=["train", "eval-only"])
@pytest.mark.parametrize("fault", ["size", "exif", "annotation ids", "category id", "images"])
def test_the_test_set_is_looked_at_before_training(case, fault, flags):
    if fault == "size":
        case.val["images"][1]["width"] = 100
        words = ("2.png", "100")
    elif fault == "exif":
        turned = Image.new("RGB", (SIDE, SIDE // 2))
        exif = turned.getexif()
        exif[274] = 6
        turned.save(case.folder / "images" / "turned.jpg", exif=exif)
        extra = {"id": 5, "file_name": "turned.jpg", "width": SIDE, "height": SIDE // 2}
        case.val["images"].append(extra)
        words = ("turned.jpg", "EXIF")
    elif fault == "annotation ids":
        spoil(case.val, "id", 7)
        words = ("val.json", "7")
    elif fault == "category id":
        case.val["annotations"][3]["category_id"] = 9
        words = ("val.json", "category", "9")
    else:
        case.val["images"][2]["file_name"] = "gone.png"
        words = ("gone.png", "1 of 4")
    assert_refused(case.check(flags=flags), *words)


def test_weights_of_another_model(case, made, tmp_path):
    weights = ("MODEL.WEIGHTS", made.weights)
    done = case.fit(*weights, flags=("--eval-only",), config="vild_ensemble")
    assert_refused(done, "MODEL.WEIGHTS", "roi_heads.", "another model")
    resnet = tmp_path / "r18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), resnet)
    other = copy.copy(made)
    other.folder = made.folder
    done = case.run(
        "predict.py",
        *("--config-file", "configs/pictograms/vild_text.yaml"),
        *("--input", case.folder / "images" / "1.png", "--output", case.folder / "found"),
        *("MODEL.OVD.VOCABULARY", made.vocabulary, "MODEL.WEIGHTS", resnet),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
    )
    assert_refused(done, "r18.pth", "another model")


NO_WEIGHTS = {
    "page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "LFS"),
    "empty": (b"", "empty"),
    "cut short": (None, "cut short"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_weights_that_are_none(case, made, kind):
    content, word = NO_WEIGHTS[kind]
    file = case.folder / f"{kind}.pth"
    file.write_bytes(made.weights.read_bytes()[:-5000] if content is None else content)
    weights = ("MODEL.WEIGHTS", file)
    assert_refused(case.check(*weights, flags=("--eval-only",)), str(file), word)
    assert_refused(case.fit(*weights, flags=("--eval-only",)), str(file), word)


def test_names_that_yaml_reads_as_something_else(tmp_path):
    place = SmallSet(tmp_path)
    for one, name in zip(place.train["categories"], ["yes", "no", "maybe"], strict=True):
        one["name"] = name
    path = place.write()
    text = path.read_text().replace('["ant", "bee"]', "[yes, no]")
    path.write_text(text)
    from ovd_d2.data.own import register_own

    with pytest.raises(ValueError, match="yes") as caught:
        register_own(path)
    assert "boolean" in str(caught.value) and "'yes'" in str(caught.value)
