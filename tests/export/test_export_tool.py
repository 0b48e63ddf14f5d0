"""The command and the example that needs no PyTorch, end to end; and what cannot be exported."""

from __future__ import annotations

import io
import json
import runpy
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.errors import SetupError
from ovd_d2.export import export_detector
from ovd_d2.predictor import OpenVocabularyPredictor
from tests.tiny import pointrend_config, tiny_config, tiny_vocabulary

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "export" / "run_onnx.py"


def call_tool(*arguments):
    runpy.run_path(str(ROOT / "tools" / "export_onnx.py"))["main"]([str(one) for one in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config file, weights and an image, as a training leaves them."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = tiny_config("vild_ensemble")
    cfg.MODEL.OVD.VOCABULARY = str(folder / "vocabulary.safetensors")
    tiny_vocabulary().save(cfg.MODEL.OVD.VOCABULARY)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "scene.png"), pixels)
    return cfg, folder


@pytest.fixture(scope="module")
def exported(trained):
    _, folder = trained
    output = folder / "model.onnx"
    arguments = ["--output", output, "--check", folder / "scene.png"]
    arguments += ["MODEL.WEIGHTS", folder / "model.pth"]  # an option of the config after --check
    with redirect_stdout(io.StringIO()) as printed:
        call_tool("--config-file", folder / "config.yaml", *arguments)
    (folder / "printed.txt").write_text(printed.getvalue())
    return output


def test_the_example_finds_what_the_predictor_finds(trained, exported):
    cfg, folder = trained
    example = runpy.run_path(str(EXAMPLE))

    scores, names, boxes, masks = example["detect"](str(exported), str(folder / "scene.png"))

    wanted = OpenVocabularyPredictor(cfg)(folder / "scene.png", threshold=0.0)
    instances = wanted.instances
    assert names == wanted.names != []
    np.testing.assert_allclose(scores, instances.scores, atol=1e-3)
    np.testing.assert_allclose(boxes, instances.pred_boxes.tensor, atol=1e-3)
    differ = np.stack(masks) != instances.pred_masks.numpy()
    assert differ.mean() < 1e-3 and instances.pred_masks.any()


def test_the_example_is_short_and_needs_no_pytorch():
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 60
    imports = {line.split()[1].split(".")[0] for line in text.splitlines() if "import " in line[:7]}
    assert imports <= {"json", "sys", "numpy", "onnxruntime"}


def test_the_metadata_say_what_a_program_must_know(trained, exported):
    cfg, _ = trained
    about = json.loads(exported.with_suffix(".json").read_text())
    assert about["channels"] == cfg.INPUT.FORMAT
    assert (about["shortest_edge"], about["longest_edge"]) == (160, 200)
    assert about["names"] == tiny_vocabulary().names
    assert about["novel"] == [False, False, False, True]
    assert about["inputs"]["embeddings"] == ["names", 8]
    assert about["outputs"] == ["boxes", "scores", "categories", "masks", "image_numbers"]


def test_the_command_says_how_close_it_is(trained, exported):
    text = (trained[1] / "printed.txt").read_text()
    assert "1 of 1 images have the same" in text
    assert "largest differences: boxes" in text


@pytest.mark.parametrize(
    ("name", "message"), [("model.pt", "ends with .onnx"), ("folder.onnx", "is a folder")]
)
def test_an_output_that_cannot_be_is_refused_before_the_model_loads(tmp_path, name, message):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit, match=message):
        call_tool("--config-file", "none.yaml", "--output", tmp_path / name)


def test_images_to_check_that_are_not_there_are_named(tmp_path):
    with pytest.raises(SystemExit, match="--check: no file matches"):
        call_tool(
            *("--config-file", "none.yaml", "--output", tmp_path / "model.onnx"),
            *("--check", tmp_path / "*.png"),
        )


@pytest.mark.parametrize(
    ("node", "name", "message"),
    [
        ("PROPOSAL_GENERATOR", "ViLDRPN", "selects proposals in a way of its own"),
        ("ROI_HEADS", "ViLDCascadeROIHeads", "is a cascade"),
    ],
)
def test_parts_that_cannot_be_traced_are_refused(tmp_path, node, name, message):
    cfg = tiny_config()
    cfg.MODEL[node].NAME = name
    model = build_model(cfg).eval()
    model.set_vocabulary(tiny_vocabulary())
    with pytest.raises(SetupError, match=message):
        export_detector(cfg, model, tmp_path / "model.onnx")


def test_masks_of_another_head_are_refused(tmp_path):
    cfg = pointrend_config()
    model = build_model(cfg).eval()
    model.set_vocabulary(tiny_vocabulary())
    with pytest.raises(SetupError, match="MODEL.MASK_ON False"):
        export_detector(cfg, model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_detector_without_words_is_refused(tmp_path):
    cfg = tiny_config()
    with pytest.raises(SetupError, match="has no vocabulary"):
        export_detector(cfg, build_model(cfg).eval(), tmp_path / "model.onnx")


def test_a_meta_architecture_of_another_project_is_refused(tmp_path):
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(SetupError, match="cannot be exported; OpenVocabularyRCNN can"):
        export_detector(cfg, build_model(cfg).eval(), tmp_path / "model.onnx")
