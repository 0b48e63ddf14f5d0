"""Folders in the layouts of ODinW and RF100-VL, zero-shot and fine-tuned on a few images."""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.checks import key_problems
from ovd_d2.projects.glip.few_images import few_images
from ovd_d2.projects.glip.folders import (
    Plan,
    evaluate_folders,
    find_sets,
    folders_table,
    read_prompts,
    select_sets,
    write_report,
)
from ovd_d2.projects.glip.folders.few_shot import tuned_config
from ovd_d2.projects.glip.folders.layout import BENCHMARKS, register_split, without_group
from ovd_d2.projects.glip.folders.prompt_file import rows_of
from ovd_d2.projects.glip.model import GLIP
from tests.catalog import forget
from tests.integration.conftest import arguments  # noqa: F401

ROOT = Path(__file__).parents[3]
CLEAN, EXPORT = "annotations_without_background.json", "_annotations.coco.json"
FISH, PISTOLS, VOC, RF = "Aquarium/Aquarium v2.coco", "pistols/export", "PascalVOC", "rf100/coins"
GROUP = {"id": 0, "name": "things", "supercategory": "none"}


def table(names, images, group=False):
    """COCO's; image k of 48 x 40 has one box of category k, and image 0 one of each."""
    categories = [{"id": k, "name": n, "supercategory": "things"} for k, n in enumerate(names, 1)]
    boxes = [(k, k % len(names) + 1) for k in range(images)]
    boxes += [(0, k) for k in range(2, len(names) + 1)]
    return {
        "categories": [*([GROUP] if group else []), *categories],
        "images": [
            {"id": k, "file_name": f"{k}.png", "width": 48, "height": 40} for k in range(images)
        ],
        "annotations": [
            {
                **{"id": number, "image_id": image, "category_id": category, "iscrowd": 0},
                **{"bbox": [4, 4 + category, 20, 18], "area": 360},
            }
            for number, (image, category) in enumerate(boxes, 1)
        ],
    }


def write(folder, file, names, images, group=False):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(table(names, images, group)), encoding="utf-8")
    for k in range(images):
        pixels = np.full((40, 48, 3), 40 + 50 * k, np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    for split, images in (("train", 4), ("valid", 2), ("test", 3)):
        write(root / FISH / split, CLEAN, ["penguin", "fish_(big)"], images)
        write(root / FISH / split, EXPORT, ["penguin", "fish_(big)"], images, group=True)
        write(root / RF / split, EXPORT, ["gold coin", "sun"], images, group=True)
    for split in ("train", "val", "test"):
        write(root / PISTOLS, f"{split}_{CLEAN}", ["pistol"], 2)
    write(root / VOC / "train", CLEAN, ["sun"], 2)
    write(root / VOC / "valid", CLEAN, ["sun"], 2)
    yield root
    beginnings = ("Aquarium", "pistols", "PascalVOC", "rf100")
    forget(*(one for one in DatasetCatalog.list() if one.startswith(beginnings)))


def config(tmp_path, *options):
    file = ROOT / "projects/GLIP/configs/pictograms/glip_detection.yaml"
    small = ("MODEL.GLIP.BLOCKS", 1, "MODEL.GLIP.BERT.LAYERS", 1, "DATALOADER.NUM_WORKERS", 0)
    sizes = ("INPUT.MIN_SIZE_TEST", 40, "INPUT.MIN_SIZE_TRAIN", "(40,)")
    weights = ("MODEL.WEIGHTS", tmp_path / "model.pth", "OUTPUT_DIR", tmp_path / "out")
    known = ("MODEL.OVD.VOCABULARY", "", "MODEL.DEVICE", "cpu")
    return load_config(str(file), [*map(str, (*small, *sizes, *weights)), *known, *options])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with the weights of an untrained model that is sure of everything."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = GLIP(config(folder, "MODEL.GLIP.BERT.PRETRAINED", "", "MODEL.WEIGHTS", ""))
    torch.nn.init.zeros_(model.head.bias)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


def test_sets_are_found_in_every_layout(root):
    sets = {one.name: one for one in find_sets(root)}
    assert list(sets) == sorted([FISH, PISTOLS, VOC, RF])
    assert sets[FISH].splits["test"].json_file == root / FISH / "test" / CLEAN
    assert sets[RF].splits["test"].json_file == root / RF / "test" / EXPORT
    assert sets[PISTOLS].splits["valid"].json_file == root / PISTOLS / f"val_{CLEAN}"
    assert sets[PISTOLS].splits["valid"].image_root == root / PISTOLS
    assert (sets[VOC].evaluated, sets[VOC].validated) == ("valid", "valid")
    assert (sets[FISH].evaluated, sets[FISH].validated) == ("test", "valid")
    with pytest.raises(SetupError, match="no data set below"):
        find_sets(root / FISH / "test")


def test_a_benchmark_must_be_complete(root):
    sets = find_sets(root)
    assert [one.name for one in select_sets(sets, ["Aquarium", "rf100/coins"])] == [FISH, RF]
    assert select_sets(sets, []) == sets
    assert {name: len(one) for name, one in BENCHMARKS.items()} == {"odinw13": 13, "odinw35": 35}
    with pytest.raises(SetupError) as error:
        select_sets(sets, ["odinw13", "Aquarium"])
    assert len(error.value.problems) == 10 and "no folder 'pothole'" in str(error.value)
    with pytest.raises(SetupError, match="no folder 'Aqua'"):
        select_sets(sets, ["Aqua"])


def test_the_group_of_an_export_is_no_category(root, tmp_path):
    (rf,) = select_sets(find_sets(root), [RF])
    name = register_split(rf, "test", tmp_path / "data")
    records = DatasetCatalog.get(name)
    assert {a["category_id"] for one in records for a in one["annotations"]} == {0, 1}
    full = table(["sun"], 2, group=True)
    assert without_group(full, {0, 1}) is full  # it has boxes
    full["categories"][1]["supercategory"] = "other"
    assert without_group(full, {1}) is full
    forget(name)


def test_prompts_of_a_file(root, tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "Aquarium:\n  penguin: {suffix: ' in black'}\n  fish_(big): big fish\nother: {}\n"
    )
    (fish,) = select_sets(find_sets(root), [FISH])
    rows = rows_of(fish, ["penguin", "fish_(big)"], read_prompts(path))
    assert rows == [("penguin", "", "penguin", " in black"), ("fish_(big)", "", "big fish", "")]
    with pytest.raises(SetupError, match="Aquarium has no category 'penguin'; its are fish"):
        rows_of(fish, ["fish"], read_prompts(path))
    path.write_text("a: {b: {colour: red}, c: 7}\n")
    with pytest.raises(SetupError) as error:
        read_prompts(path)
    assert len(error.value.problems) == 2
    path.write_text("[1]")
    with pytest.raises(SetupError, match="expected folders with categories"):
        read_prompts(path)
    with pytest.raises(SetupError, match="no file at"):
        read_prompts(tmp_path / "none.yaml")
    shipped = read_prompts(ROOT / "projects/GLIP/configs/odinw_prompts.yaml")
    assert shipped["pothole"]["pothole"]["name"] == "holes"


def test_few_images_show_every_category():
    full = table(["a", "b", "c"], 12)
    full["images"].append({"id": 99, "file_name": "x.png", "width": 9, "height": 9})
    drawn = {seed: few_images(full, 2, seed) for seed in range(8)}
    categories = {k: {a["category_id"] for a in full["annotations"] if a["image_id"] == k}
                  for k in range(12)}  # fmt: skip
    for images in drawn.values():
        assert len(set(images)) == len(images) and 99 not in images
        for category in (1, 2, 3):
            assert 2 <= sum(category in categories[k] for k in images) <= 3
    assert len({tuple(one) for one in drawn.values()}) > 3
    assert few_images(full, 2, 5) == drawn[5]
    assert sorted(few_images(full, 100, 0)) == list(range(12))


def test_the_schedule_is_the_papers(tmp_path):
    cfg = load_config(str(ROOT / "projects/GLIP/configs/glip_t.yaml"), ["MODEL.DEVICE", "cpu"])
    options = {"seed": 3, "train": "a", "validated": "b", "all_names": True}
    one = tuned_config(cfg, shots="1", images=10, **options)
    assert one.TEST.EVAL_PERIOD == 20 and one.SOLVER.MAX_ITER == 4000  # 10 images, 8 copies, 4 each
    assert (one.SOLVER.BASE_LR, one.SOLVER.WEIGHT_DECAY) == (1e-4, 0.05)
    assert (one.SOLVER.PLATEAU.PATIENCE, one.SOLVER.PLATEAU.STOP) == (3, 8)
    assert one.SOLVER.WARMUP_ITERS == 0 and not one.SOLVER.EMA.ENABLED and one.SEED == 3
    assert not one.MODEL.GLIP.PROMPTS.SHUFFLE and one.MODEL.GLIP.PROMPTS.NAMES == "all"
    assert one.MODEL.OVD.FREEZE[0].endswith("patch_embed.") and list(key_problems(one)) == []
    cfg.MODEL.GLIP.TUNING = "prompt"
    everything = tuned_config(cfg, shots="all", images=10, **options)
    assert (everything.SOLVER.BASE_LR, everything.SOLVER.WEIGHT_DECAY) == (0.05, 0.25)
    assert everything.TEST.EVAL_PERIOD == 3 and everything.SOLVER.PLATEAU.STOP == 4


def test_zero_shot(root, weights, tmp_path, arguments):  # noqa: F811
    cfg = config(weights, "OUTPUT_DIR", str(tmp_path))
    sets = select_sets(find_sets(root), [FISH, VOC])
    plan = Plan(prompts={"Aquarium": {"penguin": {"suffix": " near the sun"}}})
    report = evaluate_folders(cfg, arguments, sets, plan)
    fish, voc = report["runs"]
    assert fish["captions"] == ["penguin near the sun. fish "] and voc["captions"] == ["sun"]
    assert (fish["split"], fish["images"], fish["names"]) == ("test", 3, 2)
    assert (voc["split"], voc["chosen_by"]) == ("valid", "valid")
    assert 0 <= fish["AP"] <= 100 and voc["AP"] is not None and "AP_novel" not in voc
    file = "shots0_seed0/inference/{}/coco_instances_results.json"
    name = "Aquarium_Aquarium_v2.coco_test"
    detections = json.loads((tmp_path / FISH / file.format(name)).read_text())
    assert {one["category_id"] for one in detections} == {1, 2}
    write_report(report, tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["mean"]["0"]["AP"] == pytest.approx((fish["AP"] + voc["AP"]) / 2)
    text = folders_table(report)
    assert "protocol: COCO; names per caption: as many as 256 tokens hold" in text
    assert f"{FISH}: penguin near the sun. fish" in text
    assert text.splitlines()[-1].startswith("| mean")
    # what is there is taken; other settings are refused
    again = evaluate_folders(cfg, arguments, sets, plan)
    assert again == report
    with pytest.raises(SetupError, match="is of another prompt than this run"):
        evaluate_folders(cfg, arguments, sets, Plan())


def test_few_shot(root, weights, tmp_path, arguments):  # noqa: F811
    options = ("MODEL.GLIP.TUNING", "prompt", "OUTPUT_DIR", str(tmp_path))
    cfg = config(weights, *options)
    sets = select_sets(find_sets(root), [PISTOLS])
    report = evaluate_folders(cfg, arguments, sets, Plan(["0", "1"], [3], epochs=1))
    _, run = report["runs"]
    assert (run["shots"], run["seed"], run["training_images"]) == ("1", 3, 1)
    assert run["checkpoint"] == "model_best.pth"
    folder = tmp_path / PISTOLS / "shots1_seed3"
    best = torch.load(folder / "model_best.pth", weights_only=True)["model"]
    before = torch.load(weights / "model.pth", weights_only=True)["model"]
    assert best["prompt_offset"].abs().sum() > 0
    assert all(torch.equal(best[name], one) for name, one in before.items() if name != "vocabulary")
    assert "| data set" in folders_table(report) and "columns: AP by images" in folders_table(
        report
    )


def test_a_run_that_was_stopped_is_not_resumed_as_another(root, weights, tmp_path, arguments):  # noqa: F811
    cfg = config(weights, "OUTPUT_DIR", str(tmp_path))
    sets = select_sets(find_sets(root), [PISTOLS])
    evaluate_folders(cfg, arguments, sets, Plan(["0"]))
    (tmp_path / PISTOLS / "shots0_seed0" / "result.json").unlink()  # as if it had been killed
    other = config(weights, "OUTPUT_DIR", str(tmp_path), "MODEL.GLIP.NMS_THRESH", "0.3")
    with pytest.raises(SetupError, match="shots0_seed0 is of another settings than this run"):
        evaluate_folders(other, arguments, sets, Plan(["0"]))
    assert evaluate_folders(cfg, arguments, sets, Plan(["0"]))["runs"]


def test_prompt_tuning_of_more_names_than_one_caption_holds(root, weights, tmp_path, arguments):  # noqa: F811
    options = ("MODEL.GLIP.TUNING", "prompt", "MODEL.GLIP.NAMES_PER_CAPTION", "1")
    cfg = config(weights, *options, "OUTPUT_DIR", str(tmp_path))
    sets = select_sets(find_sets(root), [FISH])
    with pytest.raises(SetupError, match="its 2 names fill 2: leave it out by --sets"):
        evaluate_folders(cfg, arguments, sets, Plan(["1"], [3], epochs=1))


def test_the_command_line(capsys):
    file = ROOT / "projects/GLIP/tools/evaluate_folders.py"
    spec = importlib.util.spec_from_file_location("evaluate_folders", file)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = ["--config-file", "a.yaml", "--root", "b", "--sets", "odinw13", "c", "--shots", "1"]
    args = tool.parse_args([*words, "all", "MODEL.WEIGHTS", "w.pth", "OUTPUT_DIR", "d"])
    assert args.sets == ["odinw13", "c"] and args.shots == ["1", "all"]
    assert args.opts == ["MODEL.WEIGHTS", "w.pth", "OUTPUT_DIR", "d"]
    with pytest.raises(SystemExit):
        tool.parse_args([*words, "many"])
    assert "--shots takes numbers and 'all'" in capsys.readouterr().err
    assert isinstance(args, argparse.Namespace)
