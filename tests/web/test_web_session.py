"""What a user of the page can do, without the page."""

from __future__ import annotations

import io
import json
import struct
import zlib
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ovd_d2.errors import SetupError
from ovd_d2.web.results import coco_json, detections_json, sentence_of, summary_of
from ovd_d2.web.session import (
    LEAST_SCORE,
    SCREEN_SIDE,
    Finder,
    Limits,
    Session,
    entries_of,
    example_in,
    on_screen,
    open_photo,
)
from tests.tiny_fvit import wide_vocabulary
from tests.web.pages import SIZE, image_file, tiny_predictor

LIMITS = Limits(upload=30_000, pixels=20_000, names=4, examples=2)


@pytest.fixture(scope="module")
def finder():
    return Finder(tiny_predictor(), LIMITS)


@pytest.fixture(scope="module")
def session(finder):
    """With an image and two names."""
    return finder.with_photo(Session(names="kite, red anchor"), "scene.png", image_file())


def test_names_are_found_in_an_image(finder, session):
    found = session.found
    assert found.categories.names == ["kite", "red anchor"] and len(found) > 0
    expected = finder.predictor(image_file(), ["kite", "red anchor"], LEAST_SCORE)
    assert torch.equal(found.instances.scores, expected.instances.scores)
    assert summary_of(session, 0.1).startswith(f"scene.png: {len(found.from_score(0.1))} found (")


def test_other_names_cost_no_features(finder, session, monkeypatch):
    monkeypatch.setattr(finder.predictor.model.backbone, "forward", None)
    other = finder.with_names(session, "sofa | couch,\n bell,")
    assert other.found.categories.names == ["sofa", "bell"]
    assert session.names == "kite, red anchor" and session.found.categories.names[0] == "kite"
    again = finder.with_photo(replace(other, photo=None), "copy.png", image_file())
    assert again.photo.name == "copy.png"  # the same image, whoever sends it


def test_no_names_are_the_models(finder, session):
    with pytest.raises(ValueError, match="type what to look for: the model brings no names"):
        finder.with_names(session, " ,|\n")
    named = Finder(copy(finder.predictor), LIMITS)
    named.predictor.vocabulary = wide_vocabulary()
    assert named.with_names(session, "").found.categories == wide_vocabulary().categories


def test_another_threshold_asks_the_model_nothing(session):
    few, all_of_it = (json.loads(detections_json(session, t))["scene.png"] for t in (0.3, 0.0))
    assert 0 < len(few) < len(all_of_it)
    assert few == [one for one in all_of_it if one["score"] >= 0.3]


def test_nothing_found_says_the_best_scores(session):
    best = max(session.found.best_scores)
    text = summary_of(session, 1)
    assert text.startswith("Nothing scores 1 or more. The best scores: ")
    assert f"{best:.2f}" in text
    assert summary_of(Session(), 0.1) == "Drop an image to begin."


def test_downloads(session):
    found = session.found.from_score(0.3)
    coco = json.loads(coco_json(session, 0.3))
    assert [one["name"] for one in coco["categories"]] == ["kite", "red anchor"]
    (image,) = coco["images"]
    assert (image["width"], image["height"], image["file_name"]) == (*SIZE, "scene.png")
    assert len(coco["annotations"]) == len(found) > 0
    assert coco["annotations"][0]["segmentation"]
    assert (detections_json(Session(), 0.1), coco_json(Session(), 0.1)) == ("", "")


def test_the_picture_has_boxes_of_what_is_above_the_threshold(session):
    nothing, something = on_screen(session, 1.0), on_screen(session, 0.3)
    assert nothing.shape == something.shape and (nothing != something).any()
    assert on_screen(Session(), 0.3) is None


def test_large_images_are_shrunk_for_the_screen(finder):
    wide = image_file(kind="JPEG", size=(2 * SCREEN_SIDE, 4))
    photo = open_photo("wide.jpg", wide, Limits())
    assert photo.size == (4, 2 * SCREEN_SIDE) and photo.screen.shape == (2, SCREEN_SIDE, 3)


def test_boxes_and_masks_for_the_screen_are_those_of_the_image(finder):
    """Where an image is shrunk for the screen, detections shrink with it."""
    large = Finder(finder.predictor, Limits())
    photo = open_photo("a.png", image_file(size=(160, 120)), large.limits)
    small = replace(photo, screen=photo.screen[::2, ::2])
    session = large.with_photo(Session(names="kite, bell"), "a.png", photo.content)
    assert on_screen(replace(session, photo=small), 0.2).shape[:2] == (480, 640)


def test_an_example_changes_what_is_found(finder, session):
    marked = finder.with_example(session, " blob ", (0.1, 0.2, 0.6, 0.9))
    assert marked.found.categories.names == ["kite", "red anchor", "blob"]
    assert marked.examples[0].thumbnail.shape == (42, 40, 3)
    assert [len(one.examples) for one in entries_of(marked)] == [0, 0, 1]
    forgotten = finder.without_examples(marked)
    assert forgotten.found.categories.names == ["kite", "red anchor"] and not session.examples


def test_an_example_is_what_it_is_in_the_whole_image(finder, session):
    """It is cut out with as much around it as its crops show."""
    box = (8.0, 12.0, 48.0, 54.0)
    cut = finder.with_example(session, "blob", (0.1, 0.2, 0.6, 0.9)).examples[0].example
    whole = replace(cut, image=image_file(), box=box)
    vocabularies = [
        finder.predictor.vocabulary_of([replace(e, examples=(one,))])
        for e in entries_of(Session(names="blob"))
        for one in (cut, whole)
    ]
    torch.testing.assert_close(*(one.embeddings for one in vocabularies))
    corner = example_in(session.photo, (0.8, 0.8, 1.0, 1.0))
    assert Image.open(io.BytesIO(corner.image)).size == (24, 18)
    assert corner.box == (8.0, 6.0, 24.0, 18.0)


def png(mode, size):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


def bomb():
    """A small file that says it has 3,600 megapixels."""
    content = bytearray(png("1", (9, 9)))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read: it is no image"),
        (b"hello", "cannot be read: it is no image"),
        (image_file()[:-100], "cannot be read"),
        (png("I;16", (9, 9)), "grey with more than 8 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image"),
        (bytes(30_001), "has 29 KiB; at most 29 KiB are taken"),
        (png("1", (200, 101)), "is too large: at most 0.02 megapixels are taken; shrink it"),
        (bomb(), "is too large: at most"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "file",
)
def test_files_that_are_refused(finder, session, content, message):
    with pytest.raises(ValueError, match=rf"^bad\.png .*{message}") as caught:
        finder.with_photo(session, "bad.png", content)
    assert "\n" not in sentence_of(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f, s: f.with_names(s, "a, A"), "names mean the same"),
        (lambda f, s: f.with_names(s, "a, b, c | d, e"), "5 names were given, at most 4 are taken"),
        (lambda f, s: f.with_example(s, " ", (0, 0, 1, 1)), "say what the example is called"),
        (lambda f, s: f.with_example(s, "x", (0, 0, 0.01, 1)), "smaller than 4 px"),
        (lambda f, s: f.with_example(Session(), "x", (0, 0, 1, 1)), "open an image first"),
        (
            lambda f, s: f.with_example(
                f.with_example(f.with_example(s, "x", (0, 0, 1, 1)), "x", (0, 0, 1, 1)),
                *("x", (0, 0, 1, 1)),
            ),
            "at most 2 examples are taken",
        ),
    ],
)
def test_questions_that_are_refused(finder, session, change, message):
    with pytest.raises(ValueError, match=message):
        change(finder, session)


def test_a_list_of_problems_is_one_sentence():
    assert sentence_of(SetupError(["this is so", "that, too"])) == "this is so; that, too"


def test_features_of_the_last_images_are_kept(finder, monkeypatch):
    kept = Finder(finder.predictor, LIMITS, kept_images=2)
    seen = []
    encode = finder.predictor.encode

    def counted(pixels, channels):
        seen.append(int(np.asarray(pixels).sum()))
        return encode(pixels, channels)

    monkeypatch.setattr(finder.predictor, "encode", counted)
    for seed in (0, 1, 0, 2, 0, 1):
        kept.with_photo(Session(names="kite, bell"), "a.png", image_file(seed))
    assert len(seen) == 4 and len(set(seen)) == 3  # 1 was dropped for 2
