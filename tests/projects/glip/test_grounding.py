"""MDETR's layout, and what is wrong with it."""

import copy
from dataclasses import replace

import pytest

from ovd_d2.data import registration
from ovd_d2.data.coco_json import load_coco_json
from ovd_d2.data.validation import DatasetUse, validate_dataset
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.grounding import (
    cut_notices,
    grounding_sets,
    is_grounding_set,
    load_grounding_json,
    readable_records,
    record_problems,
)
from tests.projects.glip.captioned import CAPTIONS, catalog, content, register, write  # noqa: F401
from tests.projects.glip.small_words import small_tokenizer


def load(folder, table=None):
    return load_grounding_json(str(write(folder, table)), str(folder), "glip_captions")


def test_captions_and_spans_come_along(tmp_path):
    records = load(tmp_path)
    assert [one["caption"] for one in records] == list(CAPTIONS)
    first = records[0]["annotations"]
    assert [one["tokens_positive"] for one in first] == [[[2, 9]], [[16, 23]], [[16, 23]]]
    assert [one["iscrowd"] for one in first] == [0, 0, 1]  # the box without area is left out
    assert records[1]["annotations"][0]["tokens_positive"] == [[0, 9], [17, 21]]
    assert records[2]["annotations"] == []
    assert records[0]["tokens_positive_eval"] == [[[2, 9]], [[16, 23]]]
    assert records[0]["sentence_id"] == 0 and records[0]["original_img_id"] == 100


def test_data_sets_without_captions_stay_as_they_are(tmp_path):
    table = content()
    for image in table["images"]:
        del image["caption"], image["tokens_positive_eval"]
        del image["sentence_id"], image["original_img_id"]
    for one in table["annotations"]:
        del one["tokens_positive"]
    path = write(tmp_path, table)
    record = load_coco_json(str(path), str(tmp_path), "glip_plain")[0]
    assert set(record) == {"file_name", "height", "width", "image_id", "annotations"}
    assert "tokens_positive" not in record["annotations"][0]


def broken(change):
    table = copy.deepcopy(content())
    change(table)
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["annotations"][1].update(tokens_positive=[[16, 24]]),
            r"image 1: tokens_positive of its annotation 1 is wrong: \[16, 24\] does not fit a "
            r"caption of 23 characters; caption: 'a red cat and a snowman'",
        ),
        (
            lambda t: t["annotations"][4].pop("tokens_positive"),
            "image 2: tokens_positive of its annotation 0 is None, expected",
        ),
        (
            lambda t: t["annotations"][0].update(tokens_positive=[[9, 2]]),
            r"annotation 0 is wrong: \[9, 2\] does not fit",
        ),
        (lambda t: t["images"][2].pop("caption"), "image 3: its 'caption' is None"),
        (
            lambda t: t["images"][0]["tokens_positive_eval"].append([[0, 99]]),
            "image 1: tokens_positive_eval of its phrase 2 is wrong",
        ),
    ],
)
def test_records_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(SetupError, match=message):
        load(tmp_path, broken(change))


def test_all_are_listed_at_once_but_not_thousands(tmp_path):
    def change(table):
        for one in table["annotations"]:
            one["tokens_positive"] = [[0, 99]]

    with pytest.raises(SetupError) as error:
        load(tmp_path, broken(change))
    assert len(error.value.problems) == 4  # the crowd's do not matter
    records = [{"image_id": k, "caption": None} for k in range(50)]
    problems = list(record_problems(records, "file"))
    assert len(problems) == 21 and problems[-1] == "file: 30 more problems of this kind"


def test_a_set_is_known_by_its_file(tmp_path, catalog):  # noqa: F811
    path = register("glip_known", tmp_path)
    assert is_grounding_set("glip_known")
    path.write_text('{"images": [], "annotations": []}', encoding="utf-8")
    assert not is_grounding_set("glip_known")
    path.unlink()
    assert not is_grounding_set("glip_known")


def test_what_is_lost_with_the_end_of_a_caption(tmp_path):
    table = content()
    behind = " of" * 300
    table["images"][1]["caption"] = CAPTIONS[1] + behind + " anchor"
    end = len(table["images"][1]["caption"])
    table["annotations"].append(
        {**table["annotations"][4], "id": 9, "tokens_positive": [[end - 6, end]]}
    )
    table["images"][2]["caption"] = behind
    (notice,) = cut_notices("glip_long", load(tmp_path, table), small_tokenizer())
    assert notice.startswith("'glip_long': 2 captions have more than 256 tokens and are cut off")
    assert "those of the images 2, 3: 1 of their boxes are of phrases behind the cut" in notice
    assert list(cut_notices("glip_long", load(tmp_path), small_tokenizer())) == []


def test_records_are_read_with_their_problems(tmp_path, catalog):  # noqa: F811
    table = content()
    register("glip_checked", tmp_path, table)
    records, problems = readable_records("glip_checked", evaluated=True)
    assert len(records) == 3 and problems == []
    del table["images"][1]["tokens_positive_eval"]
    write(tmp_path, table)
    assert readable_records("glip_checked", evaluated=False)[1] == []
    assert readable_records("glip_checked", evaluated=True) == (
        [],
        [
            "'glip_checked': image 2: its 'tokens_positive_eval' is None, expected a list of the "
            "spans of each phrase"
        ],
    )
    table["annotations"][0]["tokens_positive"] = [[0, 99]]
    write(tmp_path, table)
    records, (problem,) = readable_records("glip_checked", evaluated=False)
    assert "image 1" in problem and records == []
    (tmp_path / "captions.json").unlink()
    assert readable_records("glip_checked", evaluated=True) == ([], [])


def test_public_sets():
    names = {one.name: one for one in grounding_sets()}
    assert names["flickr30k_separate_test"].evaluator_type == "phrase_grounding"
    assert names["goldg_mixed_train"].evaluator_type == "grounding"


def test_boxes_without_area_stop_no_training_on_a_public_set(tmp_path, catalog):  # noqa: F811
    # they are left out when the file is loaded; the check of the file refused it
    write(tmp_path)
    public = next(one for one in grounding_sets() if one.name == "refcoco_train")
    here = replace(public, name="glip_public", json_file="captions.json", image_root="")
    registration.register(here, tmp_path)
    report = validate_dataset("glip_public", DatasetUse(training=True, masks=False), progress=False)
    assert report.problems == [] and "no width or height" in " ".join(map(str, report.notices))
