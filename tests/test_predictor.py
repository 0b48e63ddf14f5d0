from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from ovd_d2 import add_ovd_config
from ovd_d2.clip import embed_names
from ovd_d2.engine.checkpoint import SafeCheckpointer
from ovd_d2.errors import SetupError
from ovd_d2.predict_files import Request, expand_inputs, predict_files
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.vocabulary import Categories, Vocabulary

CONFIG = Path(__file__).parents[1] / "configs" / "pictograms" / "vild_ensemble.yaml"
NAMES = ["anchor", "umbrella", "chess_knight"]
DIM = 64


class FakeTeacher:
    """Every sentence has a random direction of its own; counts the sentences it encodes."""

    fingerprint = "fake-0123456789abcdef"

    def __init__(self, width: int = DIM) -> None:
        self.embedding_dim = width
        self.encoded = 0

    def cut_off(self, sentence: str) -> str:
        return ""

    def encode_text(self, sentences: list[str]) -> torch.Tensor:
        self.encoded += len(sentences)
        rows = []
        for sentence in sentences:
            seed = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big")
            rows.append(
                torch.randn(self.embedding_dim, generator=torch.Generator().manual_seed(seed))
            )
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny_config()).eval()


def tiny_config():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(NAMES)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.OVD.TEACHER.PROMPTS = "single"
    cfg.MODEL.OVD.VOCABULARY = ""
    cfg.TEST.DETECTIONS_PER_IMAGE = 200
    return cfg


@pytest.fixture
def cfg(tmp_path):
    cfg = tiny_config()
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    embeddings = FakeTeacher().encode_text(NAMES)
    novel = torch.tensor([False, False, True])
    vocabulary = Vocabulary(NAMES, embeddings, novel, teacher=FakeTeacher.fingerprint)
    vocabulary.save(cfg.MODEL.OVD.VOCABULARY)
    return cfg


@pytest.fixture
def teacher():
    return FakeTeacher()


@pytest.fixture
def predictor(cfg, model, teacher):
    return Call(cfg, model=model, teacher=teacher)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)


@pytest.fixture
def somebodys_model():
    """Our heads in another project's meta-architecture, which takes no vocabulary."""
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    torch.manual_seed(0)
    return build_model(cfg).eval()


def classes(found):
    return set(found.instances.pred_classes.tolist())


class Call:
    """A predictor of BGR arrays that reports everything."""

    def __init__(self, *args, **kwargs):
        self.predictor = OpenVocabularyPredictor(*args, **kwargs)

    def __call__(self, image, names=None):
        return self.predictor(image, names, 0.0, "BGR")

    def __getattr__(self, name):
        return getattr(self.predictor, name)


def test_configured_vocabulary_needs_no_teacher(predictor, teacher, image):
    found = predictor(image)
    instances = found.instances
    assert found.categories == predictor.categories == Categories(NAMES, [False, False, True])
    assert instances.image_size == (120, 200)
    assert len(instances) > 0 and classes(found) <= {0, 1, 2}
    assert tuple(instances.pred_masks.shape[1:]) == (120, 200)
    assert teacher.encoded == 0


def test_names_in_words(predictor, image):
    output = predictor(image, ["snowman", "Chess Knight", "UMBRELLA", "red kite"])
    assert output.categories.names == ["snowman", "Chess Knight", "UMBRELLA", "red kite"]
    # only "umbrella" is a base name of the vocabulary
    assert output.categories.novel == [True, True, False, True]
    assert classes(output) <= {0, 1, 2, 3} and len(output.instances) > 0


def assert_equal(one, other):
    assert one.categories == other.categories
    assert torch.equal(one.instances.scores, other.instances.scores)
    assert torch.equal(one.instances.pred_classes, other.instances.pred_classes)


def test_the_names_of_a_call_are_its_own(predictor, model, image):
    held = model.vocabulary
    before, given = predictor(image), predictor(image, ["snowman"])
    after = predictor(image)
    assert given.categories.names == ["snowman"]
    assert predictor.categories.names == after.categories.names == NAMES
    assert_equal(before, after)
    assert model.vocabulary is held


@pytest.mark.parametrize("kind", ["model", "somebodys_model"])
def test_threads_with_names_of_their_own(cfg, teacher, image, kind, request):
    model = request.getfixturevalue(kind)
    wanted = [None, ["snowman"], ["kite", "red kite"], ["umbrella", "sun", "moon", "star"]]
    alone = [Call(cfg, model=model, teacher=teacher)(image, one) for one in wanted]
    shared = Call(cfg, model=model, teacher=teacher)
    with ThreadPoolExecutor(4) as pool:
        calls = [(k, pool.submit(shared, image, wanted[k])) for k in [0, 1, 2, 3] * 4]
        for k, call in calls:
            assert_equal(call.result(), alone[k])


def test_somebodys_model_has_its_vocabulary_again(cfg, somebodys_model, teacher, image):
    held = Vocabulary(["dog"], torch.eye(1, DIM))
    somebodys_model.roi_heads.set_vocabulary(held)
    predictor = Call(cfg, model=somebodys_model, teacher=teacher)
    found = predictor(image, ["snowman", "kite"])
    assert classes(found) <= {0, 1} and len(found.instances) > 0
    assert somebodys_model.roi_heads.vocabulary is held


def test_nothing_is_kept_of_an_image_in_somebodys_model(cfg, somebodys_model, teacher, image):
    predictor = OpenVocabularyPredictor(cfg, model=somebodys_model, teacher=teacher)
    encoded = predictor.encode(image, "BGR")
    assert_equal(predictor(encoded, ["kite"], 0.0), predictor(image, ["kite"], 0.0, "BGR"))


def test_text_embeddings_are_kept_for_the_last_lists(cfg, model, teacher, image):
    predictor = Call(cfg, model=model, teacher=teacher, cached_vocabularies=2)
    predictor(image, ["a", "b"])
    predictor(image, ["c"])
    assert teacher.encoded == 5  # a list's names and the word background
    predictor(image, ["a", "b"])  # kept, and now the youngest
    assert teacher.encoded == 5
    predictor(image, ["d"])  # drops "c"
    predictor(image, ["a", "b"])
    assert teacher.encoded == 7
    predictor(image, ["c"])
    assert teacher.encoded == 9


def test_the_order_of_names_is_the_order_of_classes(predictor, image):
    one = predictor(image, ["snowman", "kite"]).instances
    other = predictor(image, ["kite", "snowman"]).instances
    assert len(one) == len(other)
    for k in range(2):
        torch.testing.assert_close(
            one.scores[one.pred_classes == k], other.scores[other.pred_classes == 1 - k]
        )
    assert not torch.allclose(
        one.scores[one.pred_classes == 0].max(), one.scores[one.pred_classes == 1].max()
    )


def test_distractors_compete_but_are_not_reported(cfg, model, teacher, image):
    with_them = Call(cfg, model=model, teacher=teacher)
    without = Call(cfg, model=model, teacher=teacher, distractors=False)
    competing, alone = with_them(image, ["snowman"]), without(image, ["snowman"])
    assert classes(competing) <= {0} and competing.categories.names == ["snowman"]
    assert alone.instances.scores.max() > competing.instances.scores.max()


def test_a_name_does_not_compete_with_its_refinement(predictor, image):
    assert predictor.predictor._distractors_for(["red anchor"]) == [1, 2]
    assert predictor.predictor._distractors_for(["knight"]) == [0, 1]
    assert predictor.predictor._distractors_for(["anchor", "umbrella", "chess knight"]) == []
    assert predictor.predictor._distractors_for(["snowman"]) == [0, 1, 2]


def test_channel_order_follows_the_config(cfg, model, teacher, image):
    assert cfg.INPUT.FORMAT == "RGB"
    rgb = Call(cfg, model=model, teacher=teacher)(image).instances
    cfg.INPUT.FORMAT = "BGR"
    bgr = Call(cfg, model=model, teacher=teacher)
    flipped = np.ascontiguousarray(image[:, :, ::-1])
    torch.testing.assert_close(rgb.scores, bgr(flipped).instances.scores)
    assert not torch.equal(rgb.scores, bgr(image).instances.scores)


def test_same_as_the_evaluation_loop(predictor, model, cfg, image, tmp_path):
    """The predictor sees the pixels that the test loader would show the model."""
    from ovd_d2.data.mapper import OpenVocabularyDatasetMapper

    file = tmp_path / "scene.png"
    cv2.imwrite(str(file), image)
    record = {"file_name": str(file), "image_id": 1, "height": 120, "width": 200}
    mapped = OpenVocabularyDatasetMapper(cfg, is_train=False)(record)
    found = predictor(image).instances
    model.set_vocabulary(Vocabulary.load(cfg.MODEL.OVD.VOCABULARY))
    with torch.no_grad():
        expected = model([mapped])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)


def test_weights_and_vocabulary_from_files(cfg, model, teacher, image, tmp_path):
    DetectionCheckpointer(model, str(tmp_path)).save("trained")
    cfg.MODEL.WEIGHTS = str(tmp_path / "trained.pth")
    loaded = Call(cfg, teacher=teacher)
    expected = Call(cfg, model=model, teacher=teacher)
    torch.testing.assert_close(loaded(image).instances.scores, expected(image).instances.scores)
    assert not loaded.model.training


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "names is empty"),
        ("anchor", "a list, got the one 'anchor'"),
        (["anchor", 3], "a text or a list of texts, got 3"),
        (["sofa", ["couch", "Sofa"]], r"mean the same: \['sofa'\]"),
        (["anchor", " "], "blank"),
        (["red_anchor", "Red anchor"], r"mean the same: \['red anchor'\]"),
    ],
)
def test_names_that_cannot_be(predictor, image, names, message):
    with pytest.raises(ValueError, match=message):
        predictor(image, names)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)],
)
def test_wrong_image(predictor, wrong):
    with pytest.raises(ValueError, match=r"\(height, width, 3\) uint8, from 0 to 255"):
        predictor(wrong)


def test_another_teacher_is_refused(predictor, teacher, image):
    teacher.fingerprint = "other-fedcba9876543210"
    with pytest.raises(SetupError, match="other-fedc.* was made with fake-0123"):
        predictor(image, ["snowman"])


def test_missing_files_are_named(cfg, teacher, tmp_path):
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(SetupError, match="MODEL.WEIGHTS is empty"):
        Call(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    with pytest.raises(SetupError, match="no file at .*gone.pth"):
        Call(cfg)
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "none.safetensors")
    with pytest.raises(SetupError, match="MODEL.OVD.VOCABULARY: .*none.safetensors"):
        Call(cfg)


def test_crops_are_for_evaluation(cfg, model):
    cfg.MODEL.OVD.CLASSIFY_WITH = "clip_crops"
    with pytest.raises(SetupError, match="'clip_crops': it serves evaluation only"):
        Call(cfg, model=model)


def test_missing_teacher_file(cfg, model, image, tmp_path):
    cfg.MODEL.OVD.TEACHER.PRETRAINED = str(tmp_path / "clip.safetensors")
    predictor = Call(cfg, model=model)
    with pytest.raises(SetupError, match="MODEL.OVD.TEACHER: .*clip.safetensors"):
        predictor(image, ["snowman"])


def test_names_get_the_prompts_of_the_vocabulary(cfg, model, teacher, image, caplog):
    configured = Vocabulary.load(cfg.MODEL.OVD.VOCABULARY)
    configured.prompts = "clip7, synonyms"
    configured.save(cfg.MODEL.OVD.VOCABULARY)
    predictor = Call(cfg, model=model, teacher=teacher)
    given = predictor.vocabulary_of(["snowman"])
    assert given.prompts == "clip7"
    torch.testing.assert_close(given.embeddings[:1], embed_names(["snowman"], teacher, "clip7"))
    assert "made with the prompts 'clip7', MODEL.OVD.TEACHER.PROMPTS is 'single'" in caplog.text


def test_without_a_configured_vocabulary(model, teacher, image):
    predictor = Call(tiny_config(), model=model, teacher=teacher)
    with pytest.raises(SetupError, match="no names were given"):
        predictor(image)
    assert predictor.categories is None
    assert predictor(image, ["anchor"]).categories.novel == [True]  # nothing known of training


def test_the_vocabulary_of_the_checkpoint(cfg, model, teacher, image, tmp_path):
    model.set_vocabulary(Vocabulary.load(cfg.MODEL.OVD.VOCABULARY))
    SafeCheckpointer(model, str(tmp_path)).save("model")
    expected = Call(cfg, model=model, teacher=teacher)
    cfg.MODEL.OVD.VOCABULARY, cfg.MODEL.WEIGHTS = "", str(tmp_path / "model.pth")
    predictor = Call(cfg, teacher=teacher)
    assert predictor.categories == expected.categories
    for names in (None, ["snowman"]):
        one, other = (p(image, names).instances for p in (predictor, expected))
        torch.testing.assert_close(one.scores, other.scores)


def test_a_closed_vocabulary_model_refuses_names(cfg, teacher, image):
    closed = torch.nn.Identity()
    predictor = Call(cfg, model=closed, teacher=teacher)
    with pytest.raises(SetupError, match="fixed list of categories"):
        predictor(image, ["snowman"])


def test_files(predictor, image, tmp_path):
    for name in ("one", "two"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    files = expand_inputs([str(tmp_path / "*.png"), str(tmp_path / "one.png")])
    assert [file.name for file in files] == ["one.png", "two.png"]
    found = predict_files(
        predictor.predictor, files, tmp_path / "out", Request(["snowman", "kite"], threshold=1e-4)
    )
    assert found.skipped == {}
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == found.detections
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "detections.json",
        "one.png",
        "two.png",
    ]
    records = found.detections[str(files[0])]
    assert records and {one["name"] for one in records} <= {"snowman", "kite"}
    assert [one["score"] for one in records] == sorted(
        (one["score"] for one in records), reverse=True
    )
    nothing = predict_files(predictor.predictor, files, tmp_path / "out", Request(threshold=1.1))
    assert list(nothing.detections.values()) == [[], []]


def test_an_image_that_resizing_would_leave_without_pixels(predictor):
    with pytest.raises(ValueError, match=r"the image would have no pixel left .*4000 x 4"):
        predictor(np.zeros((4000, 4, 3), np.uint8))
