"""Prediction over whatever files people have; the detector is a stand-in, the files are real."""

from __future__ import annotations

import errno
import json
import os
import runpy
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO as COCOReader

from ovd_d2 import add_ovd_config
from ovd_d2.captions import Asked
from ovd_d2.data.coco_json import load_coco_json
from ovd_d2.errors import SetupError
from ovd_d2.predict_files import (
    COCO,
    DRAWINGS,
    LABEL_STUDIO,
    Request,
    expand_inputs,
    nothing_message,
    predict_files,
    skipped_message,
)
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.presence import Presence
from ovd_d2.vocabulary import Vocabulary
from tests.processes import run_ranks

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "pictograms" / "vild_ensemble.yaml"


class OneBox(torch.nn.Module):
    """Finds the whole of every image; raises `error` at the n-th."""

    error: BaseException | None = None
    at = 0

    def forward(self, inputs):
        self.at -= 1
        if self.at == 0:
            raise self.error
        return [{"instances": self.found_in(one)} for one in inputs]

    def found_in(self, one):
        assert min(one["image"].shape) > 0
        height, width = one["height"], one["width"]
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0, width, height]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        return found


class Reads(OneBox):
    """Finds the first phrase of a caption in the whole of every image."""

    set_vocabulary = None

    def ask(self, caption):
        return Asked(caption.spans, {"caption": caption.text})

    def found_in(self, one):
        assert one["caption"] == "a red anchor left of two suns"
        return super().found_in(one)


@pytest.fixture
def predictor(tmp_path_factory):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path_factory.mktemp("words") / "vocabulary.safetensors")
    Vocabulary(["anchor"], torch.eye(1, 4), torch.tensor([False]), teacher="t").save(
        cfg.MODEL.OVD.VOCABULARY
    )
    return OpenVocabularyPredictor(cfg, model=OneBox())


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)


def test_inputs_that_cannot_be(predictor, tmp_path):
    (tmp_path / "sub").mkdir()
    for file in (tmp_path / "same.png", tmp_path / "sub" / "same.jpg"):
        file.write_text("this is no image")
    with pytest.raises(SetupError, match="no file matches '.*nothing") as caught:
        expand_inputs([str(tmp_path / "nothing*"), str(tmp_path / "**" / "same.*")])
    assert "2 files are called 'same'" in str(caught.value)
    with pytest.raises(
        SetupError, match=r"same.png cannot be read: .*begins with b.this is no image"
    ):
        predict_files(predictor, [tmp_path / "same.png"], tmp_path / "out", Request())


def test_a_name_with_brackets_is_a_file(tmp_path):
    (tmp_path / "scene[1].png").write_bytes(b"")
    assert expand_inputs([str(tmp_path / "scene[1].png")]) == [tmp_path / "scene[1].png"]


@pytest.fixture
def folder(tmp_path, image):
    """Four sound images."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for k in range(4):
        cv2.imwrite(str(folder / f"{k}.png"), image)
    return folder


def bomb():
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    for kind, body in [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]:
        checksum = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return data


def inputs_of(folder):
    return expand_inputs([str(folder / "*")])


def written(output):
    return json.loads((output / "detections.json").read_text())


def test_results_never_overwrite_the_input(predictor, folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(SetupError, match="would overwrite the input; name another --output"):
        predict_files(predictor, inputs_of(folder), folder, Request())
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_nor_through_a_link_or_another_spelling(predictor, folder, tmp_path, monkeypatch):
    files = inputs_of(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(SetupError, match="4 of 5 results .*would overwrite"):
        predict_files(predictor, files, tmp_path / "link", Request())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match="would overwrite"):
        predict_files(predictor, files, Path("mine") / ".." / "mine", Request())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "2.png").symlink_to(folder / "2.png")
    with pytest.raises(SetupError, match="1 of 5 results .*2.png.* would overwrite"):
        predict_files(predictor, files, tmp_path / "out", Request())


def test_detections_json_is_a_result_too(predictor, folder, tmp_path):
    (folder / "0.png").rename(tmp_path / "detections.json")
    with pytest.raises(SetupError, match="detections.json.* would overwrite"):
        predict_files(predictor, [tmp_path / "detections.json"], tmp_path, Request())


def test_jpegs_beside_their_drawings_survive(predictor, image, tmp_path):
    cv2.imwrite(str(tmp_path / "0.jpg"), image)
    before = (tmp_path / "0.jpg").read_bytes()
    predict_files(predictor, [tmp_path / "0.jpg"], tmp_path, Request())
    assert (tmp_path / "0.jpg").read_bytes() == before and (tmp_path / "0.png").is_file()


def test_an_output_that_is_a_file(predictor, folder, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(SetupError, match="out is a file; name a folder"):
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    with pytest.raises(SetupError, match="out is a file; name a folder"):
        predict_files(
            predictor, inputs_of(folder), tmp_path / "out" / "deeper" / "still", Request()
        )


def test_bad_images_never_lose_the_results_of_the_others(predictor, folder, image, tmp_path):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-2000])  # by decoding only
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "deep.png").write_bytes(cv2.imencode(".png", np.full((60, 80), 999, np.uint16))[1])
    (folder / "empty.png").write_bytes(b"")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    cv2.imwrite(str(folder / "thin.png"), np.zeros((4000, 4, 3), np.uint8))
    found = predict_files(predictor, inputs_of(folder), tmp_path / "out", Request(threshold=0))
    good = [str(folder / f"{k}.png") for k in (0, 2, 3)]
    assert list(found.detections) == good and all(found.detections.values())
    assert written(tmp_path / "out") == found.detections
    assert (tmp_path / "out" / "3.png").is_file() and not (tmp_path / "out" / "1.png").exists()
    said = {Path(file).stem: fault for file, fault in found.skipped.items()}
    assert set(said) == {"1", "bomb", "deep", "empty", "gone", "thin"}
    assert all(f"{stem}.png " in fault for stem, fault in said.items())
    assert "1.png cannot be read" in said["1"]
    assert "is too large" in said["bomb"] and "is missing" in said["gone"]
    assert "grey with more than 8 bits, which Detectron2 would clip to white" in said["deep"]
    assert "4000 x 4 (height x width) becomes" in said["thin"]
    message = skipped_message(found.skipped, 9)
    assert message.startswith("6 of 9 images could not be used:") and message.count("\n") == 6


def test_headers_are_looked_at_before_the_first_detection(predictor, folder, tmp_path):
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(SetupError, match="4 problem.s. found before starting") as caught:
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    assert "0.png is empty" in str(caught.value) and "3.png is empty" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.cuda.OutOfMemoryError("CUDA")])
def test_what_is_done_is_written_when_the_end_comes_early(predictor, folder, tmp_path, error):
    predictor.model.error, predictor.model.at = error, 3
    with pytest.raises(type(error)):
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    assert list(written(tmp_path / "out")) == [str(folder / "0.png"), str(folder / "1.png")]


def test_an_early_end_leaves_older_results_alone(predictor, folder, tmp_path):
    predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    before = written(tmp_path / "out")
    with pytest.raises(ValueError, match="names is empty"):
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request(names=[]))
    assert written(tmp_path / "out") == before


def test_a_run_that_ended_early_goes_on(predictor, folder, tmp_path):
    predictor.model.error, predictor.model.at = KeyboardInterrupt(), 3
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    progress = tmp_path / "out" / "progress.jsonl"
    progress.write_text(progress.read_text() + '{"key": "cut sho')  # a kill leaves such a line
    with pytest.raises(SetupError, match="is of a run with other names, another model or other"):
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request(threshold=0.5))
    predictor.model.at = 0
    calls = predictor.model.at
    found = predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    assert calls - predictor.model.at == 2  # the other two were done
    assert len(found.detections) == 4 and written(tmp_path / "out") == found.detections
    assert not progress.exists()


def test_processes_share_the_files_and_what_they_have_done(predictor, folder, tmp_path):
    out, request = tmp_path / "out", Request(outputs=())
    files = inputs_of(folder)
    predictor.model.error, predictor.model.at = KeyboardInterrupt(), 2

    def work(rank):
        predict_files(predictor, files, out, request)

    assert 0 not in run_ranks(2, work)  # each has done one
    assert {one.name for one in out.iterdir()} == {"progress.jsonl", "progress-1.jsonl"}
    predictor.model.at = 0
    found = predict_files(predictor, files, out, request)
    assert predictor.model.at == -2
    assert list(found.detections) == list(map(str, files))
    assert [one.name for one in out.iterdir()] == ["detections.json"]
    predictor.model.at = 0
    assert run_ranks(2, work) == [0, 0]
    assert written(out) == found.detections and len(list(out.iterdir())) == 1


def test_a_full_disk_leaves_nothing_half_written(predictor, folder, tmp_path, monkeypatch):
    saved, save = [], Image.Image.save

    def full(image, file, **options):
        saved.append(file)
        save(image, file, **options)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    files, out = inputs_of(folder)[:2], tmp_path / "out"
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(predictor, files, out, Request())
    assert sorted(one.name for one in out.iterdir()) == [
        *("0.png", "detections.json", "progress.jsonl")
    ]
    assert list(written(out)) == [str(files[0])]
    found = predict_files(predictor, files, out, Request())
    assert len(found.detections) == 2 and len(saved) == 3


def test_images_at_once(predictor, folder, image, tmp_path):
    """Of a batch whose second file is damaged inside."""
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-2000])
    cv2.imwrite(str(folder / "2.png"), image[:, :77])
    found = predict_files(
        predictor, inputs_of(folder), tmp_path / "out", Request(outputs=(), batch=3)
    )
    boxes = [one["box"] for (one,) in found.detections.values()]
    assert boxes == [[0, 0, 200, 120], [0, 0, 77, 120], [0, 0, 200, 120]]
    assert list(found.skipped) == [str(folder / "1.png")]


def test_pre_annotation_comes_back_as_it_was(predictor, folder, tmp_path):
    request = Request(outputs=(COCO, LABEL_STUDIO))
    found = predict_files(predictor, inputs_of(folder), tmp_path / "out", request)
    read = COCOReader(str(tmp_path / "out" / "coco.json"))
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["anchor"]
    results = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert len(read.loadRes(results).anns) == 4  # pycocotools knows the ids
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    for image_id, task, (file, objects) in zip(
        read.getImgIds(), tasks, found.detections.items(), strict=True
    ):
        (image,) = read.loadImgs(image_id)
        assert image["file_name"] == task["data"]["image"] == file
        (one,) = read.loadAnns(read.getAnnIds(image_id))
        x, y, width, height = one["bbox"]
        assert [x, y, x + width, y + height] == objects[0]["box"]
        (region,) = task["predictions"][0]["result"]
        value = region["value"]
        assert value["rectanglelabels"] == ["anchor"]
        assert value["width"] * region["original_width"] / 100 == width
        assert value["height"] * region["original_height"] / 100 == height
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "detections.json",
        "coco.json",
        "coco_results.json",
        "label_studio.json",
    }


def test_our_own_loader_reads_the_data_set(predictor, folder, tmp_path):
    predict_files(predictor, inputs_of(folder), tmp_path / "out", Request(outputs=(COCO,)))
    records = load_coco_json(str(tmp_path / "out" / "coco.json"), "", "pre_annotated")
    assert [one["file_name"] for one in records] == [str(one) for one in inputs_of(folder)]
    assert all(len(one["annotations"]) == 1 for one in records)


def test_frames_of_a_video(predictor, image, tmp_path):
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, image.shape[1::-1]
    )
    for _ in range(5):
        writer.write(image)
    writer.release()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = [tmp_path / "clip.avi", tmp_path / "broken.mp4"]
    found = predict_files(predictor, files, tmp_path / "out", Request(every=2))
    keys = [f"{tmp_path / 'clip.avi'}#{k:06d}" for k in (0, 2, 4)]
    assert list(found.detections) == keys and (tmp_path / "out" / "clip_000004.png").is_file()
    assert "reads no frame of this video" in found.skipped[str(tmp_path / "broken.mp4")]


def test_nothing_found_says_what_would_be():
    text = nothing_message({"snowman": 0.0712, "red anchor": 0.1887}, 0.25)
    assert text == (
        "Nothing scores 0.25 or more. The best scores seen: red anchor 0.189, snowman 0.0712; "
        "--threshold 0.188 would show the first."
    )
    assert "no name has any score" in nothing_message({}, 0.25)


def test_names_that_are_not_likely_there(predictor, folder, tmp_path):
    with pytest.raises(SetupError, match="run tools/calibrate_presence.py first"):
        predict_files(predictor, inputs_of(folder), tmp_path / "out", Request(least_presence=0.1))
    assert not (tmp_path / "out").exists()
    predictor.presence = Presence(1.0, 0.0, 0.5)
    files = inputs_of(folder)[:1]
    request = Request(outputs=(), least_presence=0.8)
    found = predict_files(predictor, files, tmp_path / "out", request)
    assert [one["presence"] for (one,) in found.detections.values()] == [0.9]
    for tile in (0, 60):
        request = Request(outputs=(), least_presence=0.95, tile=tile)
        nothing = predict_files(predictor, files, tmp_path / "out", request)
        assert list(nothing.detections.values()) == [[]]
    text = nothing_message(nothing.best_scores, 0.25, 0.95)
    assert text == (
        "No name is likely enough to be there (--least-presence 0.95). The best scores seen: "
        "anchor 0.9."
    )


def test_best_scores_are_those_below_the_threshold(predictor, folder, tmp_path):
    found = predict_files(predictor, inputs_of(folder), tmp_path / "out", Request(threshold=0.95))
    assert list(found.detections.values()) == [[]] * 4 and found.best_scores == {"anchor": 0.9}


def test_drawings_only_where_they_are_wanted(predictor, folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "0.png").rename(folder / "sub" / "1.png")
    with pytest.raises(SetupError, match="2 files are called '1'"):
        expand_inputs([str(folder), str(folder / "sub")])
    files = expand_inputs([str(folder), str(folder / "sub")], drawings=False)
    assert len(files) == 4 and DRAWINGS == "drawings"


def test_images_of_every_mode(predictor, image, tmp_path):
    colour = Image.fromarray(image)
    turned = Image.Exif()
    turned[274] = 6
    colour.convert("L").save(tmp_path / "grey.png")
    colour.convert("P").save(tmp_path / "palette.png")
    colour.convert("RGBA").save(tmp_path / "alpha.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    colour.convert("1").save(tmp_path / "bits.png")
    colour.save(tmp_path / "turned.jpg", exif=turned)
    colour.resize((1, 1)).save(tmp_path / "one.png")
    files = expand_inputs([str(tmp_path / "*.png"), str(tmp_path / "*.jpg")])
    found = predict_files(predictor, files, tmp_path / "out", Request())
    assert found.skipped == {} and len(found.detections) == 7
    boxes = {Path(file).stem: one["box"] for file, (one,) in found.detections.items()}
    assert boxes["grey"] == boxes["cmyk"] == [0, 0, 200, 120]
    assert boxes["turned"] == [0, 0, 120, 200]
    for stem, box in boxes.items():
        with Image.open(tmp_path / "out" / f"{stem}.png") as drawn:
            assert drawn.size[0] * box[3] == drawn.size[1] * box[2]


def test_names_of_files(predictor, folder, tmp_path):
    names = ["two\nlines.png", "\u732b \u00e9.png", os.fsdecode(b"latin-\xe9.png")]
    for k, name in enumerate(names):
        (folder / f"{k}.png").rename(folder / name)
    (folder / "3.png").unlink()
    found = predict_files(predictor, inputs_of(folder), tmp_path / "out", Request())
    assert written(tmp_path / "out") == found.detections
    assert set(found.detections) == {str(folder / name) for name in names}


def test_a_folder_and_a_broken_link_as_input(folder, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(SetupError, match="no image in the folder '.*bare'"):
        expand_inputs([str(tmp_path / "bare")])
    assert len(expand_inputs([str(folder)])) == 4
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "sub.png").mkdir()
    assert [file.name for file in inputs_of(folder)] == [
        *(f"{k}.png" for k in range(4)),
        "gone.png",
    ]


@pytest.fixture
def tool(monkeypatch, predictor):
    """tools/predict.py with the predictor at hand; counts the models that it builds."""
    program = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "predict.py"))
    main, parse_args = program["main"], program["parse_args"]
    built = []

    def build(cfg, **options):
        built.append(cfg)
        return predictor

    monkeypatch.setitem(main.__wrapped__.__globals__, "OpenVocabularyPredictor", build)

    def run(*inputs, output, options=()):
        files = ["--input", *map(str, inputs), *options, "--output", str(output)]
        main(parse_args(["--config-file", str(CONFIG), *files]))

    run.built = built
    return run


def test_the_tool_names_bad_images_at_the_end(tool, folder, tmp_path, capsys):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-2000])
    with pytest.raises(SystemExit, match=r"1 of 4 images could not be used:\n .*2.png cannot be"):
        tool(folder / "*.png", output=tmp_path / "out")
    assert "detections in 3 images" in capsys.readouterr().out
    assert len(written(tmp_path / "out")) == 3


def test_the_tool_is_silent_about_sound_images(tool, folder, tmp_path, capsys):
    tool(folder / "*.png", output=tmp_path / "out")
    assert "detections in 4 images" in capsys.readouterr().out


def test_the_tool_refuses_before_it_builds_the_model(tool, folder):
    with pytest.raises(SystemExit, match="would overwrite the input; name another --output"):
        tool(folder / "*.png", output=folder)
    assert tool.built == []


def test_the_tool_asks_for_the_phrases_of_a_caption(tool, predictor, folder, tmp_path, capsys):
    predictor.model = Reads()
    asked = ("--caption", "a red anchor left of two suns", "--spans", "2:12", "21:29")
    tool(folder / "0.png", output=tmp_path / "out", options=[*asked, "--write", DRAWINGS, COCO])
    ((one,),) = written(tmp_path / "out").values()
    assert one["name"] == "red anchor" and one["score"] == 0.9
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["red anchor", "two suns"]
    assert (tmp_path / "out" / "0.png").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="calibrated with lists of names, not with captions"):
        tool(folder / "0.png", output=tmp_path, options=[*asked[:2], "--least-presence", "0.5"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--caption", "a dog", "--names", "dog"], "--names: not allowed with argument --caption"),
        (["--spans", "0:3"], "--spans are of a --caption: give it"),
        (["--caption", "a dog", "--spans", "2-5"], "2-5 is no FIRST:END, such as 2:12"),
        (["--caption", "a dog", "--like", "x.png=dog"], "not with --caption"),
    ],
)
def test_options_of_captions_that_do_not_fit(tool, options, message, capsys):
    with pytest.raises(SystemExit):
        tool("x.png", output="out", options=options)
    assert message in capsys.readouterr().err
