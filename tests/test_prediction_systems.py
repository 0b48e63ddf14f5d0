"""One predictor for all systems: words, synonyms, and images alone and in company."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

import ovd_d2.predictor as predictor_module
from ovd_d2 import add_ovd_config
from ovd_d2.captions import Caption
from ovd_d2.entries import Entry
from ovd_d2.errors import SetupError
from ovd_d2.modeling.classifier import Words
from ovd_d2.modeling.open_vocabulary import detect
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.presence import Presence
from ovd_d2.vocabulary import Vocabulary
from tests.test_predictor import FakeTeacher
from tests.tiny import random_units, tiny_config, tiny_vocabulary
from tests.tiny_fvit import build_tiny_fvit, tiny_fvit_config
from tests.tiny_glip import tiny_glip

SYSTEMS = ("vild", "fvit", "glip", "glip_without_fusion")
NAMES = ["red anchor", ["dog", "blue cup"]]


def glip_config():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file("projects/GLIP/configs/pictograms/base.yaml")
    cfg.MODEL.WEIGHTS = cfg.MODEL.OVD.VOCABULARY = ""
    return cfg


class NoTeacher:
    def __getattr__(self, name):
        raise AssertionError(f"the teacher was asked for {name}")


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """Tiny networks with random weights."""
    vild = tiny_config("vild_ensemble")
    vild.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    models = {"vild": (vild, build_model(vild))}
    models["vild"][1].set_vocabulary(tiny_vocabulary())
    fvit = tiny_fvit_config(tmp_path_factory.mktemp("fvit"))
    models["fvit"] = (fvit, build_tiny_fvit(fvit))
    models["glip"] = (glip_config(), tiny_glip())
    models["glip_without_fusion"] = (glip_config(), tiny_glip(fused=False))
    made = {}
    for name, (cfg, model) in models.items():
        cfg.MODEL.OVD.TEACHER.PROMPTS = "single"
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
        teacher = (
            NoTeacher() if name.startswith("glip") else FakeTeacher(cfg.MODEL.OVD.EMBEDDING_DIM)
        )
        made[name] = OpenVocabularyPredictor(cfg, model=model, teacher=teacher)
    return made


@pytest.fixture(scope="module")
def images():
    """Of three shapes."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (*size, 3), dtype=np.uint8) for size in [(64, 90), (80, 64)]]


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_image_has_the_same_boxes_alone_and_in_a_batch(predictors, images, system):
    predictor = predictors[system]
    vocabulary = predictor.vocabulary_of(NAMES)
    inputs = [
        {"image": predictor.network_image(one), "height": one.shape[0], "width": one.shape[1]}
        for one in images
    ]
    with torch.no_grad():
        together = [one["instances"] for one in detect(predictor.model, inputs, vocabulary)]
    listed = predictor(images, NAMES, 0.0, "BGR")
    for image, in_batch, in_list in zip(images, together, listed, strict=True):
        alone = predictor(image, vocabulary, 0.0, "BGR").instances
        assert len(alone) > 0 and set(alone.pred_classes.tolist()) <= {0, 1}
        for other in (in_batch, in_list.instances):
            assert torch.equal(alone.pred_classes, other.pred_classes)
            torch.testing.assert_close(
                alone.pred_boxes.tensor, other.pred_boxes.tensor, atol=1e-4, rtol=0
            )
            torch.testing.assert_close(alone.scores, other.scores, atol=1e-4, rtol=0)


def assert_equal(one, other):
    assert one.categories == other.categories and len(one) == len(other) > 0
    assert torch.equal(one.instances.pred_boxes.tensor, other.instances.pred_boxes.tensor)
    assert torch.equal(one.instances.scores, other.instances.scores)
    assert torch.equal(one.instances.pred_classes, other.instances.pred_classes)


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_encoded_image_is_asked_for_names_without_its_features(
    predictors, images, system, monkeypatch
):
    predictor, questions = predictors[system], [NAMES, ["bow"], NAMES]
    expected = [predictor(images[0], one, 0.0, "BGR") for one in questions]
    encoded = predictor.encode(images[0], "BGR")
    assert encoded.size == images[0].shape[:2]
    for part in ("backbone", "proposal_generator"):
        if hasattr(predictor.model, part):
            monkeypatch.setattr(getattr(predictor.model, part), "forward", None)
    if system == "glip_without_fusion":  # its tower has not seen the words, either
        monkeypatch.setattr(predictor.model.head.tower[0].dyconv, "forward", None)
    for one, names in zip(expected, questions, strict=True):
        assert_equal(predictor(encoded, names, 0.0), one)
    listed = predictor([encoded, encoded], NAMES, 0.0)
    assert_equal(listed[1], expected[0])


@pytest.mark.parametrize("system", ["vild", "glip"])
def test_threads_share_an_encoded_image(predictors, images, system):
    predictor, wanted = predictors[system], [["red anchor"], ["dog", "cup"], ["bow"]]
    encoded = predictor.encode(images[0], "BGR")
    alone = [predictor(images[0], one, 0.0, "BGR") for one in wanted]
    with ThreadPoolExecutor(3) as pool:
        for one, other in zip(
            alone, pool.map(lambda names: predictor(encoded, names, 0.0), wanted), strict=True
        ):
            assert_equal(one, other)


@pytest.mark.parametrize("system", ["vild", "glip"])
def test_masks_that_stay_in_their_boxes(predictors, images, system):
    predictor = predictors[system]
    full = predictor(images[0], NAMES, 0.0, "BGR")
    boxed = predictor(images[0], NAMES, 0.0, "BGR", full_masks=False)
    assert_equal(boxed, full)
    assert boxed.to_coco(1) == full.to_coco(1)
    assert len(list(boxed.masks())) == (len(full) if system == "vild" else 0)
    for mask, other in zip(boxed.masks(), full.masks(), strict=True):
        assert np.array_equal(mask, other) and mask.shape == images[0].shape[:2]
    best = boxed.from_score(float(boxed.instances.scores[0]))
    assert 0 < len(best) < len(boxed) and best.best_scores == boxed.best_scores


@pytest.mark.parametrize("system", ["vild", "fvit"])
def test_the_best_of_synonyms_counts(predictors, images, system):
    """Two words of one category score as the better one does among the same other names."""
    predictor = predictors[system]
    together = predictor(images[0], ["red anchor", ["dog", "blue cup"]], 0.0, "BGR")
    swapped = predictor(images[0], ["red anchor", ["blue cup", "dog"]], 0.0, "BGR")
    torch.testing.assert_close(together.instances.scores, swapped.instances.scores)
    assert together.categories.names == ["red anchor", "dog"]
    singles = [
        predictor(images[0], ["red anchor", word], 0.0, "BGR").best_scores[1]
        for word in ("dog", "blue cup")
    ]
    # a softmax over more words gives none of them more
    assert together.best_scores[1] <= max(singles) + 1e-5
    assert together.best_scores[1] >= min(singles) - 1e-5
    boxes = together.instances[together.instances.pred_classes == 1].pred_boxes.tensor
    assert len(boxes.unique(dim=0)) == len(boxes)  # one box, not one per word


def test_glip_asks_for_every_word_and_counts_the_best(predictors, images):
    predictor = predictors["glip"]
    (question,) = predictor.model.questions_of(predictor.vocabulary_of(NAMES))
    assert question.labels.tolist() == [0, 1, 1]
    found = predictor(images[0], NAMES, 0.0, "BGR")
    assert found.categories.names == ["red anchor", "dog"]
    boxes = found.instances[found.instances.pred_classes == 1].pred_boxes.tensor
    assert len(boxes) > 0 and len(boxes.unique(dim=0)) == len(boxes)


CAPTION = Caption("a red anchor, a dog", [[2, 12], [16, 19]])


@pytest.mark.parametrize("system", ["glip", "glip_without_fusion"])
def test_phrases_of_a_caption(predictors, images, system):
    predictor = predictors[system]
    found, small = predictor(images, CAPTION, 0.0, "BGR")
    assert found.categories.names == ["red anchor", "dog"]
    assert set(found.instances.pred_classes.tolist()) == {0, 1} and found.presence is None
    ids = predictor.model._tokenizer.encode(CAPTION.text).ids  # "a", "," are no words of it
    height, width = images[0].shape[:2]
    asked = {
        "image": predictor.network_image(images[0]),
        "tokens": torch.tensor(ids),
        "positive_map": torch.tensor([[0, 0, 0.5, 0.5, 0, 0, 0, 0], [0] * 6 + [1.0, 0]]),
    }
    with torch.no_grad():
        (raw,) = predictor.model([{**asked, "height": height, "width": width}])
    order = raw["instances"].scores.argsort(descending=True, stable=True)
    assert torch.equal(raw["instances"].scores[order], found.instances.scores)
    assert torch.equal(raw["instances"].pred_classes[order], found.instances.pred_classes)
    assert_equal(predictor(images[1], CAPTION, 0.0, "BGR"), small)
    assert_equal(predictor(predictor.encode(images[0], "BGR"), CAPTION, 0.0), found)


def test_a_phrase_is_read_in_its_sentence(predictors, images):
    predictor = predictors["glip"]
    alone, other = Caption("red anchor", [(0, 10)]), Caption("red anchor dog", [(0, 10)])
    scores = [predictor(images[0], one, 0.0, "BGR").best_scores for one in (alone, other)]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("system", ["vild", "fvit"])
def test_a_detector_that_knows_names_alone_refuses_captions(predictors, images, system):
    with pytest.raises(SetupError, match="reads no captions: give the phrases of 'a red anchor, a"):
        predictors[system](images[0], CAPTION, 0.0, "BGR")


def test_captions_that_are_refused(predictors, images):
    glip = predictors["glip"]
    with pytest.raises(ValueError, match=r"\[2, 40\] does not fit a caption of 5 characters"):
        glip(images[0], Caption("a dog", [(2, 40)]), 0.0, "BGR")
    with pytest.raises(ValueError, match="names must be a list, got the one Caption"):
        glip.vocabulary_of(CAPTION)
    with pytest.raises(ValueError, match="a name is a text or a list of texts"):
        glip(images[0], ["dog", CAPTION], 0.0, "BGR")
    calibrated = OpenVocabularyPredictor(
        glip.cfg, model=glip.model, presence=Presence(1.0, 0.0, 0.5)
    )
    assert calibrated(images[0], ["dog"], 0.0, "BGR").presence is not None
    assert calibrated(images[0], CAPTION, 0.0, "BGR").presence is None
    with pytest.raises(SetupError, match="calibrated with lists of names, not with captions"):
        calibrated(images[0], CAPTION, 0.0, "BGR", least_presence=0.5)


def test_words_of_a_category_share_its_softmax():
    words = Words(torch.eye(3), torch.tensor([False, True]), None, torch.tensor([0, 1, 1]))
    similarities = torch.tensor([[1.0, 5.0, 3.0, 0.5], [2.0, -4.0, -3.0, 9.0]])
    expected = torch.tensor([[1.0, 5.0, 0.5], [2.0, -3.0, 9.0]])
    assert torch.equal(words.best(similarities), expected)


def test_glip_has_no_use_for_descriptions(predictors, images):
    entry = Entry("dog", descriptions=("it barks",))
    with pytest.raises(SetupError, match="GLIP reads words: .* descriptions .*'dog'"):
        predictors["glip"](images[0], [entry], 0.0, "BGR")


def test_glip_has_no_teacher_for_crops(predictors):
    glip = predictors["glip"]
    with pytest.raises(SetupError, match="GLIP reads words and has no teacher .*without --crops"):
        OpenVocabularyPredictor(
            glip.cfg, model=glip.model, presence=Presence(1.0, 0.0, 0.0, crop_weight=1.0)
        )


def test_another_teachers_vocabulary_is_refused(predictors, images):
    predictor = predictors["vild"]
    known = tiny_vocabulary()
    known.teacher = "mine"
    predictor.vocabulary = known
    try:
        with pytest.raises(SetupError, match="given was made with yours, the detector's with mine"):
            predictor(images[0], Vocabulary(["x"], random_units(1), teacher="yours"), 0, "BGR")
    finally:
        predictor.vocabulary = None


def test_forms_of_one_image(predictors, images, tmp_path):
    predictor, image = predictors["vild"], images[0]
    file = tmp_path / "scene.png"
    cv2.imwrite(str(file), image)
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    vocabulary = tiny_vocabulary()
    expected = predictor(image, vocabulary, 0.0, "BGR").instances.scores
    forms = [str(file), file, file.read_bytes(), Image.fromarray(rgb)]
    forms += [Image.open(file).convert("RGBA")]
    found = [predictor(one, vocabulary, 0.0) for one in forms]
    found += predictor([rgb, torch.from_numpy(rgb).permute(2, 0, 1)], vocabulary, 0.0, "RGB")
    for one in found:
        assert torch.equal(one.instances.scores, expected)


def png(mode, size=(40, 30)):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "bad, message",
    [
        ("https://example.org/a.jpg", "is an address: download it"),
        (b"", "no image that Pillow knows"),
        (png("RGB", (300, 300))[:-40], "damaged|cannot be read"),
        (png("I;16"), "grey with more than 8 bits"),
        (Image.new("F", (9, 9)), "grey with more than 8 bits"),
        (np.zeros((9, 9, 3), np.uint8), "channels is None: say 'BGR'"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), r"must be \(3, height, width\)"),
        ({}, "got dict"),
    ],
    ids=lambda value: "image" if not isinstance(value, str) else value[:20],
)
def test_what_is_no_image(predictors, bad, message):
    with pytest.raises(ValueError, match=message):
        predictors["vild"](bad, tiny_vocabulary())


def test_images_of_odd_kinds(predictors):
    turned = Image.new("RGB", (40, 20))
    turned.getexif()[274] = 6
    kinds = [Image.new("CMYK", (40, 30)), Image.new("L", (40, 30)), np.zeros((1, 1), np.uint8)]
    found = predictors["vild"]([*kinds, turned], tiny_vocabulary(), 0.0)
    assert [one.instances.image_size for one in found] == [(30, 40), (30, 40), (1, 1), (40, 20)]


@pytest.mark.parametrize("system", ["vild", "fvit", "glip"])
def test_images_of_odd_sizes(predictors, system):
    predictor = predictors[system]
    sizes = [(1, 1), (120, 20_000), (1, 90)]
    images = [np.zeros((*size, 4), np.uint8) for size in sizes]
    found = predictor(images, NAMES, 0.0, "RGB")
    assert [one.instances.image_size for one in found] == sizes
    for one, (height, width) in zip(found, sizes, strict=True):
        boxes = one.instances.pred_boxes.tensor
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


def test_what_others_take(predictors, images):
    found = predictors["vild"](images[0], tiny_vocabulary(), 0.0, "BGR")
    first, coco = found.to_pipeline()[0], found.to_coco(7)
    assert first["label"] == found.names[0] and set(first["box"]) == {
        "xmin",
        "ymin",
        "xmax",
        "ymax",
    }
    assert coco[0]["image_id"] == 7 and len(coco) == len(found)
    x, y, width, height = coco[0]["bbox"]
    assert first["box"] == {
        "xmin": int(x),
        "ymin": int(y),
        "xmax": int(x + width),
        "ymax": int(y + height),
    }
    assert coco[0]["category_id"] == int(found.instances.pred_classes[0]) + 1
    assert coco[0]["segmentation"]["size"] == list(found.instances.image_size)


def test_as_supervision(predictors, images):
    supervision = pytest.importorskip("supervision", reason="an extra of this package")
    found = predictors["vild"](images[0], tiny_vocabulary(), 0.0, "BGR")
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.data["class_name"].tolist() == found.names
    assert detections.mask.shape == (len(found), *found.instances.image_size)


def test_the_best_scores_are_those_below_the_threshold_too(predictors, images):
    predictor = predictors["vild"]
    everything = predictor(images[0], tiny_vocabulary(), 0.0, "BGR")
    nothing = predictor(images[0], tiny_vocabulary(), 1.1, "BGR")
    assert len(nothing) == 0 and nothing.best_scores == everything.best_scores
    assert max(everything.best_scores) == everything.instances.scores.max()


def test_many_names_and_other_scripts(predictors, images):
    names = [f"thing {k}" for k in range(2000)] + ["голубь", "鳩", "🕊"]
    vocabulary = predictors["vild"].vocabulary_of(names)
    found = predictors["vild"](images[0], vocabulary, 0.0, "BGR")
    assert found.categories.names == names and len(found.best_scores) == len(names)


def test_threads_share_glip_with_names_of_their_own(predictors, images):
    wanted = [["red anchor"], ["dog", "cup"], ["bow"]]
    predictor = predictors["glip"]
    alone = [predictor(images[0], one, 0.0, "BGR").best_scores for one in wanted]
    started = threading.Barrier(3)

    def call(names):
        started.wait()
        return predictor(images[0], names, 0.0, "BGR").best_scores

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, wanted)) == alone


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_list_is_batched_by_padded_size(predictors, images, system, monkeypatch):
    predictor, seen = predictors[system], []

    def counted(model, inputs, vocabulary):
        seen.append([tuple(one["image"].shape[1:]) for one in inputs])
        return detect(model, inputs, vocabulary)

    monkeypatch.setattr(predictor_module, "detect", counted)
    monkeypatch.setattr(predictor, "batch_size", 2)
    order = [images[0], images[1], images[0][:, ::-1], images[0][::-1]]
    vocabulary = predictor.vocabulary_of(NAMES)
    together = predictor([np.ascontiguousarray(one) for one in order], vocabulary, 0.0, "BGR")
    assert sorted(map(len, seen)) == [1, 1, 2]
    assert all(len(set(sizes)) == 1 for sizes in seen)
    for one, found in zip(order, together, strict=True):
        alone = predictor(np.ascontiguousarray(one), vocabulary, 0.0, "BGR")
        assert found.instances.image_size == one.shape[:2]
        torch.testing.assert_close(
            found.instances.scores, alone.instances.scores, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("system", ["vild", "fvit"])
def test_20_000_names_are_one_softmax(predictors, images, system):
    """Every name is scored among all others, as in a table made in one go."""
    predictor = predictors[system]
    draw = torch.Generator().manual_seed(0)
    width = predictor.teacher.embedding_dim
    rows = torch.nn.functional.normalize(torch.randn(20_000, width, generator=draw), dim=1)
    names, background = [f"thing {k}" for k in range(20_000)], rows[0]
    vocabulary = Vocabulary(names, rows, background=background)
    found = predictor(images[0], vocabulary, 0.0, "BGR")
    assert len(found.best_scores) == 20_000
    # The same rows in another order: chunks would cut them elsewhere.
    order = torch.randperm(20_000, generator=draw)
    shuffled = Vocabulary([names[k] for k in order.tolist()], rows[order], background=background)
    again = predictor(images[0], shuffled, 0.0, "BGR")
    best = torch.tensor(again.best_scores)
    torch.testing.assert_close(best, torch.tensor(found.best_scores)[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.instances.scores, again.instances.scores, atol=1e-6, rtol=0)


def test_glip_merges_its_captions(predictors, images, monkeypatch):
    """Twelve names in captions of four give what three calls of four names give together."""
    predictor = predictors["glip"]
    monkeypatch.setattr(predictor.model, "names_per_caption", 4)
    names = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("dog", "cup", "bow", "anchor")]
    together = predictor(images[0], names, 0.0, "BGR").instances
    parts = [predictor(images[0], names[k : k + 4], 0.0, "BGR").instances for k in (0, 4, 8)]
    scores = torch.cat([one.scores for one in parts])
    classes = torch.cat([one.pred_classes + 4 * k for k, one in enumerate(parts)])
    best = scores.topk(len(together))
    torch.testing.assert_close(together.scores, best.values, atol=1e-5, rtol=0)
    assert torch.equal(together.pred_classes, classes[best.indices])


def test_2_000_names_in_glip(predictors, images):
    names = [f"thing {k}" for k in range(2_000)]
    found = predictors["glip_without_fusion"](images[0], names, 0.0, "BGR")
    assert found.categories.names == names and len(found) > 0
