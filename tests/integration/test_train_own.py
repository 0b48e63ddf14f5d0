"""Drawn images in VOC's form, through every command of tools/train_own.py and of the tutorial."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.own_training import (
    ENSEMBLE,
    TEXT,
    Run,
    own_data,
    recipe_file,
    results_table,
    training_steps,
    vocabulary_step,
    write_configs,
)
from tests.programs import run_program

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
# What a page's Python looks at, beside the tutorial's own files.
SCENE = "datasets/pictograms_v1/val/000001.png"
OPTIONS = ["MODEL.OVD.TEACHER.ARCHITECTURE", "Pictogram-RN", "MODEL.WEIGHTS", ""]
OPTIONS += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"]
OPTIONS += ["DATALOADER.NUM_WORKERS", "0"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """(script, arguments) of what the page has run."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in re.findall(r"^python (.*)", text, re.MULTILINE):
        script, *arguments = shlex.split(line)
        yield script, arguments


def done(script, *arguments):
    program = run_program(script, *arguments)
    assert program.status == 0, program.stdout[-2000:] + program.stderr[-2000:]
    return program.stdout


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The tutorial's images and their import, a fifth of them held out, but fewer."""
    place = tmp_path_factory.mktemp("train_own")
    (draw, (_,)), (load, (_, *words)), *_ = commands(TUTORIAL)
    done(draw, place / "scenes", 8)
    words = [place / "data" if word == "output/scenes_data" else word for word in words]
    done(load, place / "scenes", *words, "--name", "drawn")
    yield place
    for name in ("drawn_train", "drawn_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="module")
def trained(imported):
    """Every command, as it is printed; run in the order of their needs."""
    data = own_data(imported / "data/my_data.yaml")
    recipe = recipe_file("configs/pictograms/base.yaml", "cpu")
    run = Run(data, imported / "out", recipe, OPTIONS)
    write_configs(run)
    steps = [vocabulary_step(run)]
    done(steps[0].script, *steps[0].arguments)
    write_configs(run)
    steps += training_steps(run)
    for step in steps[1:]:
        done(step.script, *step.arguments)
        assert step.product.exists(), step.name
    return run, steps


def test_it_ends_with_numbers_images_and_a_model(trained):
    run, _ = trained
    table = results_table(run)
    assert "drawn_val" in table and "AP50_novel" in table and "mask" not in table
    detections = json.loads((run.folder / "images/detections.json").read_text())
    held_out = {one["file_name"] for one in DatasetCatalog.get("drawn_val")}
    assert set(detections) == held_out
    assert {one.name for one in (run.folder / "images").glob("*.png")} == {
        f"{Path(one).stem}.png" for one in held_out
    }
    assert (run.folder / "model/vocabulary.safetensors").is_file()


def test_every_step_comes_after_those_it_needs(trained):
    _, steps = trained
    names = [step.name for step in steps]
    assert all(names.index(need) < names.index(step.name) for step in steps for need in step.needs)


def test_the_saved_config_needs_no_options(trained):
    run, _ = trained
    cfg = load_config(str(run.folder / ENSEMBLE / "config.yaml"))
    assert cfg.DATASETS.TRAIN == ("drawn_train",) and cfg.DATASETS.TEST == ("drawn_val",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 6  # base and novel
    assert cfg.MODEL.OVD.EMBEDDING_DIM == 64 and cfg.SOLVER.MAX_ITER == 2
    assert str(run.weights(TEXT)) == cfg.MODEL.WEIGHTS and not cfg.MODEL.MASK_ON
    assert yaml.safe_load(run.config(TEXT).read_text())["_BASE_"] == "data.yaml"


@pytest.fixture(scope="module")
def started(trained, imported):
    """A folder where the files of the pages are at their places, up to the training."""
    run, _ = trained
    folder = imported / "started"
    (folder / SCENE).parent.mkdir(parents=True)
    (folder / "output").mkdir()
    places = {
        "output/scenes": imported / "scenes",
        "output/scenes_run": run.folder,
        "output/my_model": run.folder / "model",
        SCENE: imported / "scenes/JPEGImages/000001.png",
    }
    for name, target in places.items():
        (folder / name).symlink_to(target)
    return folder


def test_the_tutorial_goes_on_from_the_training(started):
    """To a detector without PyTorch, asked for other names."""
    names = [script for script, _ in commands(TUTORIAL)]
    after = list(commands(TUTORIAL))[names.index("tools/train_own.py") + 1 :]
    assert [Path(script).stem for script, _ in after] == [
        "predict",
        "export_onnx",
        "run_onnx",
        "build_vocabulary",
        "run_onnx",
    ]
    (started / "output/words.txt").write_text("snowman\nsun\n")
    said = ""
    for script, arguments in after:
        local = [re.sub("^output/", f"{started}/output/", word) for word in arguments]
        if script.endswith("export_onnx.py"):  # two iterations make no score worth showing
            local[-1] = "0.0"
            assert local[-2] == "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
        said = done(script, *local)
    assert {line.split()[1] for line in said.splitlines()} == {"snowman", "sun"}


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLAIMS = [
    pytest.param(block, id=page.stem)
    for page in PAGES
    for block in blocks(page, "python")
    if block.startswith("from ovd_d2")  # others are parts of a program
]


@pytest.mark.parametrize("block", CLAIMS)
def test_python_of_the_pages_runs(block, started, monkeypatch):
    monkeypatch.chdir(started)
    exec(compile(block, "page", "exec"), {})  # two iterations may make nothing worth printing


def test_a_changed_annotation_file_is_another_run(trained, imported):
    _, steps = trained
    by_name = {step.name: step for step in steps}
    files = {imported / "data" / one for one in ("my_data.yaml", "train.json", "val.json")}
    assert files <= set(by_name["vocabulary"].inputs) and files <= set(by_name["check"].inputs)


def test_options_that_no_config_has_are_named(imported, tmp_path):
    data = own_data(imported / "data/my_data.yaml")
    run = Run(data, tmp_path, recipe_file("", "cpu"), ["SOLVER.MAX_ITERS", "3"])
    with pytest.raises(SetupError, match="SOLVER.MAX_ITERS"):
        write_configs(run)


def test_sets_are_chosen_by_name(imported):
    file = imported / "data/my_data.yaml"
    assert own_data(file, test="drawn_train").test == "drawn_train"
    with pytest.raises(SetupError, match="--train other: .* has drawn_train, drawn_val"):
        own_data(file, train="other")
    with pytest.raises(SetupError, match="import_dataset"):
        own_data(file.with_name("none.yaml"))


def test_the_command_refuses_in_one_sentence(imported, tmp_path):
    words = [imported / "data/my_data.yaml", "--output", tmp_path, "--recipe", "none.yaml"]
    program = run_program("tools/train_own.py", *words)
    assert program.status == 1 and "--recipe none.yaml: no such file" in program.stderr
    assert "Traceback" not in program.stderr
