"""Counting, in one process and in two; the evaluation from configs and without."""

import json
import os
import socket
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.region_classification.evaluator import (
    RESULTS_FILE,
    RegionClassificationEvaluator,
)
from ovd_d2.projects.clipself.region_classification.segments import counting_segments, with_crops
from ovd_d2.projects.clipself.region_classification.standalone import RegionRun, evaluate_sizes
from tests.programs import SERVER
from tests.segments import PANOPTIC, REGIONS, SOURCE
from tests.tiny_vits import EVA, NATIVE, tiny_teacher

NAMES = ["a", "b", "c", "d"]
EMBEDDINGS = torch.eye(4)


def scene(image_id, cells, things=True):
    """An input and an output: segments are quarters of a 32 x 32 image whose map has 2 x 2 cells.

    `cells`: of each quarter what it is and what its features are those of.
    """
    ids = np.arange(1, 5).reshape(2, 2).repeat(16, axis=0).repeat(16, axis=1)
    flags = np.broadcast_to(things, 4)
    entries = [
        {
            "id": k + 1,
            "category_id": cells[k][0],
            "isthing": bool(flags[k]),
            "bbox": (k % 2 * 16, k // 2 * 16, 16, 16),
        }
        for k in range(len(cells))
    ]
    dense = torch.zeros(4, 2, 2)
    for k, (_, looks) in enumerate(cells):
        dense[looks, k // 2, k % 2] = 1
    given = {"image_id": image_id, "image": torch.zeros(3, 64, 64), "height": 32, "width": 32}
    given["segments"] = counting_segments(ids, entries)
    return given, {"dense_features": dense, "padded_size": (64, 64)}


def evaluator(**options):
    made = RegionClassificationEvaluator("quarters", NAMES, EMBEDDINGS, **options)
    made.reset()
    return made


def process(one, *scenes):
    for given, output in scenes:
        one.process([given], [output])
    return one


SCENES = [
    scene(1, [(0, 0), (0, 1), (1, 1), (2, 3)]),
    scene(2, [(0, 0), (1, 2)]),
]


def test_accuracy_by_hand():
    found = process(evaluator(), *SCENES).evaluate()["regions"]
    expected = 100 * (2 / 3 + 1 / 2 + 0) / 3
    assert found["boxes-things-top1"] == pytest.approx(expected)
    assert found["masks-things-top1"] == pytest.approx(expected)
    assert found["masks-things-top5"] == 100
    assert found["boxes-things-top1-float16"] == pytest.approx(expected, abs=0.05)


def test_a_synonym_is_its_category():
    """What looks like the fourth word is of the third category."""
    owners = torch.tensor([0, 1, 2, 2])
    one = RegionClassificationEvaluator("quarters", NAMES[:3], EMBEDDINGS, owners=owners)
    one.reset()
    found = process(one, *SCENES).evaluate()["regions"]
    assert found["boxes-things-top1"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)


def test_without_stuff_things_are_reported_alone():
    found = process(evaluator(), *SCENES).evaluate()["regions"]
    assert not [name for name in found if "stuff" in name]


def test_without_things_stuff_is_reported_alone():
    found = process(evaluator(), scene(1, [(0, 0), (1, 2)], things=False)).evaluate()["regions"]
    assert found["masks-stuff-top1"] == 50
    assert not [name for name in found if "things" in name]


def test_without_any_segment_there_is_nothing_to_report():
    assert process(evaluator(), scene(1, [])).evaluate() == {"regions": {}}
    assert evaluator().evaluate() == {"regions": {}}


def test_one_category():
    one = RegionClassificationEvaluator("quarters", NAMES[:1], EMBEDDINGS[:1])
    one.reset()
    found = process(one, scene(1, [(0, 0), (0, 2)])).evaluate()["regions"]
    assert found["boxes-things-top1"] == found["boxes-things-top5"] == 100


def test_a_mask_without_patches_is_named_wrong():
    given, output = scene(1, [(0, 0)])
    given["segments"].id_map[:] = 0  # as of a segment that was drawn over
    found = process(evaluator(), (given, output)).evaluate()["regions"]
    assert found["boxes-things-top1"] == 100
    assert found["masks-things-top5"] == 0


def test_crops_of_images_are_the_ceiling():
    given, output = scene(1, [(0, 3), (1, 3)])
    pixels = np.zeros((32, 32, 3), np.uint8)
    given["segments"] = with_crops(given["segments"], pixels, 8)
    features = torch.eye(4)[:2]
    found = process(evaluator(crops=lambda crops: features), (given, output)).evaluate()["regions"]
    assert found["crops-things-top1"] == 100 and found["boxes-things-top1"] == 0


def test_an_image_that_comes_twice_counts_once(tmp_path):
    once = process(evaluator(output_dir=str(tmp_path)), *SCENES).evaluate()
    twice = process(evaluator(), *SCENES, SCENES[1]).evaluate()
    assert once == twice
    written = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert written["images"] == 2
    first = written["accuracy"][0]
    assert (first["feature"], first["group"], first["top"]) == ("boxes", "things", 1)
    assert first["per_category"] == pytest.approx({"a": 2 / 3, "b": 0.5, "c": 0.0})


def _worker(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    # as a sampler that pads: the second process sees an image of the first one again
    own = SCENES[:1] if rank == 0 else [SCENES[1], SCENES[0]]
    found = process(evaluator(), *own).evaluate()
    assert (found is None) == (rank == 1)
    if rank == 0:
        torch.save(found, f"{folder}/both.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_two_processes_count_what_one_counts(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        _worker, args=(str(tmp_path), port), nprocs=2, start_method=SERVER.get_start_method()
    )
    both = torch.load(tmp_path / "both.pt", weights_only=True)
    assert both == process(evaluator(), *SCENES).evaluate()


def test_from_a_config(on_disk):
    cfg = on_disk.config(REGIONS)
    model = OpenVocabularyTrainer.build_model(cfg)
    found = OpenVocabularyTrainer.test(cfg, model)["regions"]
    kinds = {name.rpartition("-top")[0] for name in found}
    assert kinds == {"boxes-things", "masks-things", "crops-things"}
    assert (on_disk.folder / "output" / "inference" / REGIONS / RESULTS_FILE).is_file()


def test_a_teacher_without_a_config_gives_the_same(on_disk, tmp_path):
    cfg = on_disk.config(REGIONS)
    expected = OpenVocabularyTrainer.test(cfg, OpenVocabularyTrainer.build_model(cfg))
    run = RegionRun(REGIONS, tiny_teacher(EVA), prompts="single", workers=0)
    found = evaluate_sizes(run, [64, 40], tmp_path)
    assert found["64"] == pytest.approx(expected["regions"])
    assert not [name for name in found["40"] if "crops" in name]  # the same at every size
    assert (tmp_path / "40" / RESULTS_FILE).is_file()


@pytest.mark.parametrize("crops", ["dense-mean", "none"])
def test_what_becomes_of_crops(on_disk, tmp_path, crops):
    run = RegionRun(REGIONS, tiny_teacher(NATIVE), crops=crops, prompts="single", workers=0)
    found = evaluate_sizes(run, [32], tmp_path)["32"]
    assert ("crops-things-top1" in found) == (crops == "dense-mean")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("nowhere_regions", "is not registered"), (PANOPTIC, "is none of region classification")],
)
def test_other_data_sets_are_refused(on_disk, tmp_path, dataset, message):
    with pytest.raises(SetupError, match=message):
        evaluate_sizes(RegionRun(dataset, tiny_teacher(NATIVE)), [32], tmp_path)


def test_a_config_without_vocabulary_is_refused(on_disk):
    cfg = on_disk.config(REGIONS, opts=["MODEL.OVD.VOCABULARY", ""])
    build = partial(OpenVocabularyTrainer.build_evaluator, cfg, REGIONS)
    with pytest.raises(SetupError, match=f"VOCABULARY is empty.*--dataset {REGIONS}"):
        build()


def test_missing_files_are_named_with_the_command_that_makes_them(on_disk):
    from ovd_d2.data.categories import missing_file_problem

    on_disk.files.json_file.rename(on_disk.folder / "away")
    try:
        assert f"write_panoptic.py --dataset {SOURCE}" in missing_file_problem(REGIONS)
    finally:
        (on_disk.folder / "away").rename(on_disk.files.json_file)
