"""GLIP-L's training sets, small ones in the official layouts, from files to draws."""

import json
from collections import Counter
from itertools import islice

import pytest

from ovd_d2.data.passengers import DATA_SET
from ovd_d2.engine.build import build_train_loader
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.run import load_config
from tests.catalog import forget
from tests.projects.glip.captioned import write
from tests.projects.glip.test_glip_official_weights import CONFIGS

# Of the registered sets: annotation file and folder of images.
PLACES = {
    "objects365_v2_train": (
        "objects365/annotations/zhiyuan_objv2_train.json",
        "objects365/train",
    ),
    "goldg_mixed_train_no_coco": (
        "mdetr_annotations/final_mixed_train_no_coco.json",
        "gqa/images",
    ),
    "flickr30k_separate_train": (
        "mdetr_annotations/final_flickr_separateGT_train.json",
        "flickr30k/flickr30k_images/train",
    ),
    "pseudo_labels": ("captions/pseudo_labels.json", "captions/images"),
}
COPIES = {
    "objects365_v2_train": 2,
    "goldg_mixed_train_no_coco": 4,
    "flickr30k_separate_train": 8,
    "pseudo_labels": 1,
}


def as_detection(table):
    table["categories"][0]["name"] = "Moniter/TV"
    for one in table["annotations"]:
        del one["tokens_positive"]
    for one in table["images"]:
        del one["caption"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three images of each set."""
    forget(*PLACES)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for file, images in PLACES.values():
        folder = tmp_path / images
        folder.mkdir(parents=True)
        table = json.loads((captions := write(folder)).read_text())
        captions.unlink()
        table["annotations"] = [one for one in table["annotations"] if one["area"]]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if file.startswith("objects365"):
            as_detection(table)
        (tmp_path / file).write_text(json.dumps(table))
    own = {"json_file": "pseudo_labels.json", "image_root": "images"}
    (tmp_path / "captions/data_set.yaml").write_text(json.dumps({"pseudo_labels": own}))
    yield tmp_path
    forget(*PLACES)


def test_every_set_is_read_and_drawn_as_often_as_the_recipe_says(root):
    options = ["MODEL.DEVICE", "cpu", "MODEL.GLIP.TOKENIZER", "pictograms"]
    options += ["MODEL.GLIP.BERT.PRETRAINED", ""]
    options += ["DATASETS.OWN", str(root / "captions/data_set.yaml"), "DATASETS.TEST", ()]
    options += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1]
    options += ["DATALOADER.ASPECT_RATIO_GROUPING", False, "SEED", 0]
    cfg = load_config(str(CONFIGS / "glip_l.yaml"), options)
    check_setup(cfg, training=True, progress=False)
    epoch = 3 * sum(COPIES.values())
    drawn = [one for (one,) in islice(iter(build_train_loader(cfg)), epoch)]
    assert Counter(one[DATA_SET] for one in drawn) == {k: 3 * v for k, v in COPIES.items()}
    detection = [one["caption"] for one in drawn if one[DATA_SET] == "objects365_v2_train"]
    assert set(detection) == {"Monitor/TV"}
    written = {one["caption"] for one in drawn if one[DATA_SET] == "flickr30k_separate_train"}
    assert "a red cat and a snowman" in written
