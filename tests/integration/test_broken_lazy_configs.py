"""What is wrong with a LazyConfig's data sets is found before its training starts."""

import shutil

import pytest
from PIL import Image

from tests.small_sets import SmallSet, small_dataset


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    place = SmallSet(tmp_path_factory.mktemp("made"))
    done = place.run("build_vocabulary.py", "--dataset", "my_train", "--output", place.vocabulary)
    assert done.code == 0, done.text
    return place.vocabulary


@pytest.fixture
def case(tmp_path, vocabulary):
    place = SmallSet(tmp_path)
    shutil.copy(vocabulary, place.vocabulary)
    return place


def refusal(case, *options):
    """What tools/lazyconfig_train_net.py says of a text branch on my_train and my_val."""
    done = case.run(
        "lazyconfig_train_net.py",
        *("--config-file", "configs/pictograms/lazy_vild.py"),
        "dataloader.train.dataset.names=my_train",
        "dataloader.test.dataset.names=my_val",
        "dataloader.train.mapper.passengers=[]",
        "model.roi_heads.variant.name=vild_text",
        f"vocabulary.path={case.vocabulary}",
        f"train.output_dir={case.folder / 'out'}",
        "train.init_checkpoint=''",
        *options,
    )
    assert done.code == 1 and "Traceback" not in done.text
    assert not (case.folder / "out").exists()
    return done.text


def test_lvis_evaluator_over_a_coco_set(case):
    said = refusal(case)
    assert "1 problem(s)" in said
    assert "'my_val' is of the evaluator_type 'coco'" in said
    assert "OpenVocabularyCOCOEvaluator" in said


def test_two_test_sets(case):
    assert "2 data sets" in refusal(case, "dataloader.test.dataset.names=[my_val,my_train]")


def test_mask_keys_are_the_lazy_ones(case):
    key = "dataloader.train.mapper.instance_mask_format"
    assert f"{key}: 'rle', expected polygon or bitmask" in refusal(case, f"{key}=rle")
    case.train["annotations"][0]["segmentation"] = None
    said = refusal(case)
    assert "set dataloader.train.mapper.use_instance_mask False" in said
    assert "MODEL.MASK_ON" not in said


def test_images_without_a_pixel_left(case):
    Image.new("RGB", (4000, 4)).save(case.folder / "images" / "thin.png")
    case.train, case.val = small_dataset(), small_dataset()
    thin = {"id": 9, "file_name": "thin.png", "width": 4000, "height": 4}
    case.train["images"].append(thin)
    case.val["images"].append(thin)
    said = refusal(case)
    assert said.count("4 x 4000 (height x width) becomes 0 x 160") == 1
    assert "becomes 0 x 200" in said
