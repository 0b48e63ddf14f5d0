"""Pictograms as grounding data."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.build import get_base_dataset_dicts
from ovd_d2.pictograms.dataset import COLOURS, GLYPHS
from ovd_d2.pictograms.dataset.captions import caption_of
from ovd_d2.projects.glip.grounding import is_grounding_set, record_problems
from ovd_d2.projects.glip.passengers import TrainingPrompts
from ovd_d2.projects.glip.pictograms import pictogram_tokenizer
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.prompts.tokenizer import SHIPPED
from tests.integration.conftest import _drawn_once, mini  # noqa: F401
from tests.projects.glip.captioned import mapper_with

TOKENIZER = load_tokenizer("pictograms")


def pieces(text):
    vocabulary = json.loads(SHIPPED["pictograms"].read_text(encoding="utf-8"))["model"]["vocab"]
    names = {number: piece for piece, number in vocabulary.items()}
    return [names[k] for k in TOKENIZER.encode(text).ids[1:-1]]


def test_the_shipped_tokenizer_is_what_the_words_make(tmp_path):
    pictogram_tokenizer().save(tmp_path / "again.json")
    expected = (tmp_path / "again.json").read_text(encoding="utf-8")
    assert SHIPPED["pictograms"].read_text(encoding="utf-8") == expected
    assert Path(SHIPPED["pictograms"]).stat().st_size < 10_000


def test_words_are_tokens_and_plurals_share_them():
    assert pieces("two red anchors") == ["two", "red", "anchor", "##s"]
    assert pieces("zebra") == ["z", "##e", "##b", "##r", "##a"]  # falls into letters
    for colour in COLOURS:
        for glyph in GLYPHS:
            one = caption_of([(0, colour, glyph.name)] * 2 + [(1, colour, "sun")])[0]
            assert "[UNK]" not in pieces(one)


@pytest.mark.parametrize("split", ["train", "train_all", "val"])
def test_captions_speak_of_the_boxes(mini, split):  # noqa: F811
    name = f"pictograms_v1_mini_captions_{split}"
    register_data_sets([name])
    assert is_grounding_set(name)
    records = DatasetCatalog.get(name)
    assert list(record_problems(records, name)) == []
    shown = get_base_dataset_dicts([name])  # novel boxes stay: the set has them by name
    assert [one["annotations"] for one in shown] == [one["annotations"] for one in records]
    mapped = mapper_with(TrainingPrompts(TOKENIZER, {}))(shown[0])
    vocabulary = dict(enumerate(pieces(mapped["caption"]), 1))
    for row, one in zip(mapped["instances"].gt_token_targets, shown[0]["annotations"], strict=True):
        ((first, end),) = one["tokens_positive"]
        words = [vocabulary[k] for k in row.nonzero()[:, 0].tolist()]
        assert words == pieces(mapped["caption"][first:end])


def test_base_captions_name_nothing_novel(mini):  # noqa: F811
    register_data_sets(
        ["pictograms_v1_mini_captions_train", "pictograms_v1_mini_captions_train_all"]
    )
    base, everything = (
        {
            (one["image_id"], a["category_id"])
            for one in DatasetCatalog.get(f"pictograms_v1_mini_captions_{split}")
            for a in one["annotations"]
        }
        for split in ("train", "train_all")
    )
    assert base < everything
