"""Pseudo labels: phrases, shards that survive a kill, the joined data set."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.grounding import load_grounding_json
from ovd_d2.projects.glip.prompts.tokenizer import WordPieces
from ovd_d2.projects.glip.pseudo_labels import (
    CaptionedImage,
    LabelRun,
    Settings,
    images_of_data_set,
    images_of_folder,
    label_images,
    labels_of,
    phrases_of_list,
)
from ovd_d2.projects.glip.pseudo_labels.shards import annotation_file
from ovd_d2.projects.glip.pseudo_labels.teacher import GLIPTeacher, write_sheet
from tests.integration.test_distributed import free_port
from tests.processes import exit_code, fork, kill
from tests.programs import run_program
from tests.projects.glip.captioned import catalog, content, register  # noqa: F401
from tests.tiny_glip import WORDS, tiny_glip

CAPTION = "red cat . old snowman ."
SETTINGS = Settings("teacher", 0.5, shard_size=3)
TOOL = "projects/GLIP/tools/pseudo_label.py"
SMALL = "projects/GLIP/configs/pictograms/glip_small_teacher.yaml"


def images(count=8, folder="."):
    phrases = phrases_of_list(CAPTION)
    return [CaptionedImage(k, f"{folder}/{k}.png", 30, 40, CAPTION, phrases) for k in range(count)]


def teacher(image):
    """A box of each phrase; that of the second scores above 0.5 in every second image."""
    k = image.image_id
    return Instances(
        (30, 40),
        pred_boxes=Boxes(torch.tensor([[1.0, 2, 11, 22], [5, 5, 25, 25 + k]])),
        scores=torch.tensor([0.5, 0.9 if k % 2 else 0.2]),
        pred_classes=torch.tensor([0, 1]),
    )


def test_phrases_of_lists():
    def words(caption):
        return [caption[first:end] for ((first, end),) in phrases_of_list(caption)]

    assert words(CAPTION) == ["red cat", "old snowman"]
    assert words("a. b .c") == ["a", "b", "c"]
    assert words(" . . ") == [] and words("Ä cat") == ["Ä cat"]


def test_boxes_above_the_threshold():
    entry = labels_of(images()[1], teacher(images()[1]), 0.5)
    (box,) = entry["annotations"]  # 0.5 itself is not above
    assert box == {"bbox": [5, 5, 20, 21], "score": 0.9, "tokens_positive": [[10, 21]]}
    assert entry["caption"] == CAPTION and "phrases" not in entry
    with pytest.raises(ValueError, match="phrase 1 of 1"):
        labels_of(
            CaptionedImage(0, "0.png", 30, 40, "cat", (((0, 3),),)), teacher(images()[1]), 0.5
        )


def test_the_best_box_of_a_phrase_may_score_less():
    boxes = Boxes(torch.tensor([[5.0, 5, 25, 26]]).repeat(4, 1) + torch.arange(4.0)[:, None])
    scores, phrases = torch.tensor([0.7, 0.55, 0.45, 0.6]), torch.tensor([0, 0, 1, 1])
    found = Instances((30, 40), pred_boxes=boxes, scores=scores, pred_classes=phrases)

    def kept(*thresholds):
        return [one["score"] for one in labels_of(images()[1], found, *thresholds)["annotations"]]

    assert kept(0.65) == [0.7] and kept(0.65, 0.5) == [0.7, 0.6] == kept(0.65, 0.59)
    assert kept(0.65, 0.61) == [0.7] and kept(0.5, 0.5) == [0.7, 0.55, 0.6] and kept(0.8, 0.7) == []


def test_the_result_is_a_grounding_set(tmp_path):
    run = LabelRun(tmp_path, images(), SETTINGS)
    statistics = label_images(images(), teacher, run, progress=False)
    assert statistics == json.loads((tmp_path / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["images"] == 8 and statistics["images_without_boxes"] == 4
    assert statistics["boxes"] == 4 and statistics["unique_phrases"] == 1
    assert statistics["score_quantiles"]["0.5"] == 0.9
    records = load_grounding_json(str(tmp_path / "pseudo_labels.json"), "", "glip_pseudo")
    assert [one["image_id"] for one in records] == [1, 3, 5, 7]
    assert records[0]["annotations"][0]["tokens_positive"] == [[10, 21]]


def test_the_category_of_a_box_is_what_its_phrase_is_about():
    def entry(number, *phrases):
        caption = ", ".join(phrases)
        boxes = [
            {"bbox": [1, 1, 5, 5], "score": 0.9, "tokens_positive": [[start, start + len(phrase)]]}
            for phrase in phrases
            for start in [caption.index(phrase)]
        ]
        shape = {"file_name": "a.png", "height": 9, "width": 9, "caption": caption}
        return {"image_id": number, **shape, "annotations": boxes}

    table = annotation_file(
        [entry(1, "two red Cats", "a glass", "+"), entry(2, "the cat"), entry(3)]
    )
    names = {one["id"]: one["name"] for one in table["categories"]}
    found = [(one["image_id"], names[one["category_id"]]) for one in table["annotations"]]
    assert found == [(1, "cat"), (1, "glass"), (1, "object"), (2, "cat")]
    assert [one["id"] for one in table["images"]] == [1, 2] and sorted(names) == [1, 2, 3]


def test_a_run_that_was_stopped_labels_the_rest_alone(tmp_path):
    seen = []

    def counting(image):
        seen.append(image.image_id)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return teacher(image)

    run = LabelRun(tmp_path, images(), SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        label_images(images(), counting, run, progress=False)
    assert run.missing() == [1, 2]
    label_images(images(), counting, run, progress=False)
    assert seen == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    assert [one["image_id"] for one in run.entries()] == list(range(8))


def test_ranks_share_the_shards(tmp_path):
    run = LabelRun(tmp_path, images(), SETTINGS)
    assert (run.missing(0, 2), run.missing(1, 2)) == ([0, 2], [1])
    assert [list(run.images_of_shard(k)) for k in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def photos_and_weights(folder, count):
    """Random ones, and a caption of each photo; the arguments of the tool that name them."""
    weights = str(folder / "teacher.pth")
    options = ["MODEL.WEIGHTS", weights, "MODEL.OVD.VOCABULARY", ""]
    options += ["TEST.DETECTIONS_PER_IMAGE", "4"]  # the sheet draws them all
    torch.manual_seed(0)
    torch.save({"model": build_model(load_config(SMALL, options)).state_dict()}, weights)
    pixels, lines = np.random.default_rng(0), []
    for k in range(count):
        photo = Image.fromarray(pixels.integers(0, 256, (60, 80 + k, 3), dtype=np.uint8))
        photo.save(folder / f"{k}.png")
        lines.append(f"{k}.png\t{CAPTION}")
    captions = folder / "captions.tsv"
    captions.write_text("\n".join(lines), encoding="utf-8")
    files = ("--config-file", SMALL, "--images", folder, "--captions", captions)
    return [*files, "--threshold", 0, "--shard-size", 1], options


def test_two_processes_label_what_one_does(tmp_path):
    arguments, options = photos_and_weights(tmp_path, 5)

    def label(name, **environment):
        output = ("--output", tmp_path / name)
        return run_program(
            TOOL, *arguments, *output, *options, CUDA_VISIBLE_DEVICES="", **environment
        )

    # what torchrun says to each process
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_WORLD_SIZE": 2}
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(label, "two", **group, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2)
            for rank in range(2)
        ]
        programs = [label("one"), *(one.result() for one in calls)]
    assert [one.status for one in programs] == [0, 0, 0], [one.stderr for one in programs]
    done = [
        f"{shards}/{shards}" in one.stderr for shards, one in zip((5, 3, 2), programs, strict=True)
    ]
    assert done == [True] * 3  # each rank labels its shards and no others
    assert json.loads(programs[0].stdout)["boxes"] == 5 * 4 and programs[2].stdout == ""
    one, two = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*.*")
        }
        for name in ("one", "two")
    )
    assert len(one) == 5 + 5 and one == two


@pytest.mark.parametrize(
    ("others", "settings", "message"),
    [
        (images(), Settings("other", 0.5, 0.5, 3), "have teacher 'teacher', this run has 'other'"),
        (images(), Settings("teacher", 0.5, 0.4, 3), "have phrase_threshold 0.5, this run has 0.4"),
        (images(), Settings("teacher", 0.4, 0.5, 3), "have threshold 0.5, this run has 0.4"),
        (images(7), SETTINGS, "have images 8, this run has 7"),
        (images(8, "elsewhere"), SETTINGS, "have fingerprint"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, others, settings, message):
    LabelRun(tmp_path, images(), SETTINGS).start()
    LabelRun(tmp_path, images(), SETTINGS).start()
    with pytest.raises(SetupError, match=message):
        LabelRun(tmp_path, others, settings).start()


def test_damaged_shards_are_named(tmp_path):
    run = LabelRun(tmp_path, images(), SETTINGS)
    label_images(images(), teacher, run, progress=False)
    run.path_of(1).write_text("[{}", encoding="utf-8")
    with pytest.raises(SetupError, match=r"00001.json: .*delete it and run the same command"):
        label_images(images(), teacher, run, progress=False)
    run.path_of(1).write_text("[]", encoding="utf-8")
    with pytest.raises(SetupError, match="has 0 images, expected 3"):
        run.join()


def test_kill_and_resume(tmp_path):
    def slow(image):
        time.sleep(0.05)
        return teacher(image)

    def label():
        label_images(images(200), slow, LabelRun(tmp_path, images(200), SETTINGS), progress=False)

    child = fork(label)
    deadline = time.monotonic() + 60
    while not (tmp_path / "shards" / "00003.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill([child])
    assert exit_code(child) == -signal.SIGKILL
    run = LabelRun(tmp_path, images(200), SETTINGS)
    assert 0 < len(run.missing()) < run.shards
    label_images(images(200), teacher, run, progress=False)
    whole = LabelRun(tmp_path / "whole", images(200), SETTINGS)
    label_images(images(200), teacher, whole, progress=False)
    labels = [(one / "pseudo_labels.json").read_bytes() for one in (tmp_path, tmp_path / "whole")]
    assert labels[0] == labels[1]


def test_images_of_a_folder(tmp_path):
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    captions = tmp_path / "captions.tsv"
    captions.write_text(f"a.png\t{CAPTION}\n\n", encoding="utf-8")
    (one,) = images_of_folder(tmp_path, captions)
    assert (one.height, one.width, one.phrases) == (30, 40, phrases_of_list(CAPTION))
    captions.write_text(f"a.png\t . \na.png\t{CAPTION}\n", encoding="utf-8")
    assert len(images_of_folder(tmp_path, captions)) == 1  # the first names nothing
    captions.write_text("a.png red cat\nb.png\tcat\n", encoding="utf-8")
    with pytest.raises(SetupError) as error:
        images_of_folder(tmp_path, captions)
    problems = error.value.problems
    assert len(problems) == 2 and "line 1: expected" in problems[0]
    assert "line 2" in problems[1] and "b.png" in problems[1]


def test_images_of_a_grounding_set(tmp_path, catalog):  # noqa: F811
    register("glip_unlabelled", tmp_path)
    first, second, third = images_of_data_set("glip_unlabelled")
    assert first.phrases == (((2, 9),), ((16, 23),)) and third.phrases == ()
    table = content()
    for one in table["images"]:
        del one["tokens_positive_eval"]
    register("glip_without", tmp_path, table)
    with pytest.raises(SetupError, match="'glip_without': its images have no 'caption' with"):
        images_of_data_set("glip_without")
    with pytest.raises(SetupError, match="'glip_nowhere' is not registered"):
        images_of_data_set("glip_nowhere")


def test_a_sheet_of_what_was_found(tmp_path):
    for k in range(4):
        Image.fromarray(np.full((30, 40, 3), 60 * k, np.uint8)).save(tmp_path / f"{k}.png")
    chosen = images(4, str(tmp_path))
    entries = [labels_of(one, teacher(one), 0.5) for one in chosen]
    with Image.open(write_sheet(entries, tmp_path)) as sheet:
        assert sheet.width > 80
    assert write_sheet([entries[0]], tmp_path) is None  # nothing was found in it


def test_glip_as_the_teacher(tmp_path):
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / "0.png")
    sizes = ["INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"]
    cfg = load_config("projects/GLIP/configs/base_glip.yaml", sizes)
    tokenizer = WordPieces.from_vocabulary(WORDS)
    image = CaptionedImage(0, str(tmp_path / "0.png"), 30, 40, "red anchor . dog .", ())
    image = replace(image, phrases=phrases_of_list(image.caption))
    found = GLIPTeacher(tiny_glip().eval(), cfg, tokenizer)(image)
    assert found.image_size == (30, 40)
    assert set(found.pred_classes.tolist()) <= {0, 1}
    entry = labels_of(image, found, 0.0)
    assert len(entry["annotations"]) == len(found)
