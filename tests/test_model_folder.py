"""A trained detector as a folder, and what is said of folders that are none."""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import ovd_d2.model_folder as model_folder
from ovd_d2.engine.checkpoint import save_weights
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_folder
from ovd_d2.model_folder import Card, export_model, folder_config, push_model
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.presence import Presence
from tests.test_predictor import FakeTeacher
from tests.tiny import tiny_config, tiny_vocabulary


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The config of a tiny trained detector, whose checkpoint brings its vocabulary."""
    cfg = tiny_config("vild_text")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    model.set_vocabulary(tiny_vocabulary())
    folder = tmp_path_factory.mktemp("training")
    save_weights(model, folder / "model_final.pth")
    teacher = folder / "clip.safetensors"
    teacher.write_bytes(b"the teacher's weights")
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.MODEL.OVD.TEACHER.PRETRAINED = str(teacher)
    cfg.DATASETS.TRAIN = ()
    return cfg


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    export_model(trained, folder, Card("apache-2.0", {"bbox/AP": 31.4159}, "Finds glyphs."))
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    for file in filter(lambda one: one.is_file(), exported.rglob("*")):
        target = tmp_path / "copy" / file.relative_to(exported)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path / "copy"


def test_the_folder_finds_what_the_training_found(trained, exported):
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    found, expected = (
        OpenVocabularyPredictor.from_pretrained(exported)(image, None, 0.0, "BGR"),
        OpenVocabularyPredictor(trained)(image, None, 0.0, "BGR"),
    )
    assert found.categories == expected.categories and len(found) > 0
    assert torch.equal(found.instances.scores, expected.instances.scores)


def test_the_calibration_of_presence_goes_along(trained, tmp_path):
    presence = Presence(1.5, 0.5, 0.8)
    written = presence.save(Path(trained.MODEL.WEIGHTS))
    export_model(trained, tmp_path / "mine", Card("mit"))
    written.unlink()
    predictor = OpenVocabularyPredictor.from_pretrained(tmp_path / "mine")
    assert predictor.presence == presence
    assert "presence.json" in (tmp_path / "mine" / "SHA256SUMS").read_text()
    image = np.zeros((64, 80, 3), np.uint8)
    everything = predictor(image, None, 0.0, "BGR")
    expected = presence.of(torch.tensor(everything.best_scores))
    assert everything.presence == tuple(expected.tolist())
    most = max(everything.presence)
    kept = predictor(image, None, 0.0, "BGR", least_presence=most)
    assert 0 < len(kept) < len(everything) and kept.presence == everything.presence
    assert {everything.presence[k] for k in kept.instances.pred_classes.tolist()} == {most}
    assert len(predictor(image, None, 0.0, "BGR", least_presence=most + 0.01)) == 0
    (tmp_path / "mine" / "presence.json").unlink()
    with pytest.raises(SetupError, match="presence.json is missing"):
        folder_config(tmp_path / "mine")


def test_presence_that_was_not_calibrated(exported):
    predictor = OpenVocabularyPredictor.from_pretrained(exported)
    with pytest.raises(SetupError, match="run tools/calibrate_presence.py first"):
        predictor(np.zeros((64, 80, 3), np.uint8), None, 0.0, "BGR", least_presence=0.5)


def test_the_folder_is_complete(exported):
    assert sorted(one.name for one in exported.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.yaml",
        "files",
        "model.safetensors",
        "preprocessing.json",
        "vocabulary.safetensors",
    ]
    cfg = folder_config(exported)
    assert str(exported / "files" / "pretrained.safetensors") == cfg.MODEL.OVD.TEACHER.PRETRAINED
    assert str(exported) not in (exported / "config.yaml").read_text()
    card = (exported / "README.md").read_text()
    for expected in ("license: apache-2.0", "- bbox/AP: 31.42", "4 categories, 1 of them novel"):
        assert expected in card
    content = json.loads((exported / "preprocessing.json").read_text())
    assert content["channels"] == "RGB" and len(content["mean"]) == 3
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=exported, check=True)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.yaml", "files/pretrained.safetensors"]
)
def test_a_file_cut_short(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:-5])
    with pytest.raises(SetupError, match=rf"{name} is not the file that was exported .*cut short"):
        OpenVocabularyPredictor.from_pretrained(copied)


def test_sums_that_are_cut_short(copied):
    (copied / "SHA256SUMS").write_text("")
    with pytest.raises(SetupError, match="SHA256SUMS lacks config.yaml, model.safe"):
        folder_config(copied)


def test_a_file_that_is_missing(copied):
    (copied / "vocabulary.safetensors").unlink()
    with pytest.raises(SetupError, match="vocabulary.safetensors is missing: copy or download"):
        OpenVocabularyPredictor.from_pretrained(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="has no model.safetensors: copy or download"):
        OpenVocabularyPredictor.from_pretrained(copied)


def test_a_foreign_folder(tmp_path):
    (tmp_path / "README.md").write_text("# of something else")
    with pytest.raises(SetupError, match="is no model folder: it has no .*tools/export_model.py"):
        OpenVocabularyPredictor.from_pretrained(tmp_path)


def test_what_is_nowhere(tmp_path, monkeypatch):
    def fail(name):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SetupError, match=r"hub \(.*no route to host\): download .* the folder$"):
        OpenVocabularyPredictor.from_pretrained("owner/name")
    with pytest.raises(SetupError, match="no model folder and no config file at"):
        OpenVocabularyPredictor.from_pretrained(str(tmp_path / "gone"))
    with pytest.raises(SetupError, match="no file at 'gone.yaml'"):
        OpenVocabularyPredictor.from_pretrained("gone.yaml")


def test_the_hub_is_asked_for_what_is_no_folder(exported, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: str(exported))
    assert OpenVocabularyPredictor.from_pretrained("owner/name").categories is not None


def test_pushing(exported, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *a, **k: asked.append((a, k)) or "x")
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **k: asked.append(k))
    assert push_model(exported, "me/mine", private=True) == "x"
    assert asked == [
        (("me/mine",), {"private": True, "exist_ok": True}),
        {"repo_id": "me/mine", "folder_path": exported},
    ]

    def refuse(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(SetupError, match="offline.*is whole: push it later with 'hf upload"):
        push_model(exported, "me/mine", private=True)


def test_a_folder_that_is_there_stays(trained, exported):
    before = (exported / "SHA256SUMS").read_bytes()
    with pytest.raises(SetupError, match="mine is there already: name another folder"):
        export_model(trained, exported, Card("mit"))
    assert (exported / "SHA256SUMS").read_bytes() == before


def test_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_folder, "_sums", full)
    with pytest.raises(OSError, match="No space left on device: .*half"):
        export_model(trained, tmp_path / "half", Card("mit"))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "a").write_text("b")
    assert (tmp_path / "empty" / "a").read_text() == "b"


def test_names_by_the_teacher_of_the_folder(exported):
    predictor = OpenVocabularyPredictor.from_pretrained(exported, teacher=FakeTeacher(8))
    predictor.cfg.MODEL.OVD.TEACHER.PROMPTS = "single"
    assert predictor.vocabulary_of(["kite"]).embedding_dim == 8
