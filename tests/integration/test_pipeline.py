"""The whole way on the mini Pictograms, by the commands users type, in a few iterations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import EmbeddingCache, Manifest
from ovd_d2.pictograms.dataset import prepare
from tests.programs import run_program

TRAIN, VAL = "pictograms_v1_mini_train", "pictograms_v1_mini_val"
TEACHER = ["--architecture", "Pictogram-RN", "--pretrained", "shipped"]


class Workplace:
    """A folder with data sets in which the project's commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, script, *arguments, status=0):
        data = self.folder / "datasets"
        done = run_program(f"tools/{script}", *arguments, DETECTRON2_DATASETS=data)
        assert done.status == status, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    def train(self, method, *options, status=0):
        return self.run(
            "train_net.py",
            *("--config-file", f"configs/pictograms/{method}.yaml", "--resume"),
            *("OUTPUT_DIR", self.folder / method, "DATASETS.TRAIN", f"('{TRAIN}',)"),
            *("DATASETS.TEST", f"('{VAL}',)", "MODEL.OVD.VOCABULARY", self.vocabulary),
            *("MODEL.VILD.DISTILLATION.CACHE", self.folder / "cache", "SOLVER.MAX_ITER", 2),
            *("SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", 0),
            *options,
            status=status,
        )

    @property
    def vocabulary(self):
        return self.folder / "vocabulary.safetensors"

    @property
    def start_weights(self):
        return self.folder / "start" / "model_final.pth"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("pipeline"))
    prepare(place.folder / "datasets", full=False, workers=1, progress=False)
    place.run("build_vocabulary.py", "--dataset", TRAIN, *TEACHER, "--output", place.vocabulary)
    place.train("start", "MODEL.WEIGHTS", "", "DATASETS.TEST", "()")
    place.run(
        "extract_proposals.py",
        *("--config-file", "configs/pictograms/start.yaml"),
        *("--top-k", 8, "--output", place.folder / "proposals"),
        *("MODEL.WEIGHTS", place.start_weights, "DATALOADER.NUM_WORKERS", 0),
        *("DATASETS.TRAIN", f"('{TRAIN}',)"),
    )
    place.run(
        "cache.py",
        *("build", "--dataset", TRAIN, "--proposals", place.folder / "proposals", *TEACHER),
        *("--output", place.folder / "cache"),
    )
    return place


def test_the_cache_holds_every_image_and_is_sound(workplace):
    cache = EmbeddingCache(workplace.folder / "cache")
    assert len(cache) == 30
    assert cache.verify() == []
    record = cache[next(iter(cache))]
    assert record.embeddings.shape == (len(record.boxes), 64)
    assert len(record) <= 8


def test_ensemble_trains_evaluates_and_resumes(workplace):
    weights = ("MODEL.WEIGHTS", workplace.start_weights)
    workplace.train("vild_ensemble", *weights)
    results = json.loads(
        (workplace.folder / "vild_ensemble" / "inference" / "results.json").read_text()
    )
    for task in ("bbox", "segm"):
        assert {"AP", "APr", "APc", "APf", "AP50_base", "AP50_novel"} <= set(results[task])
    metrics = (workplace.folder / "vild_ensemble" / "metrics.json").read_text()
    assert "loss_distillation" in metrics
    log = workplace.train("vild_ensemble", *weights, "SOLVER.MAX_ITER", 3)
    assert "Starting training from iteration 2" in log
    checkpoint = torch.load(
        workplace.folder / "vild_ensemble" / "model_final.pth", weights_only=True
    )
    assert checkpoint["iteration"] == 2


def test_online_trains_without_a_cache_and_resumes(workplace):
    options = (
        *("MODEL.WEIGHTS", workplace.start_weights, "MODEL.VILD.DISTILLATION.CACHE", ""),
        *("MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS", workplace.folder / "proposals"),
        *("DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", 1),
    )
    workplace.train("vild_online", *options)
    output = workplace.folder / "vild_online"
    assert "loss_distillation" in (output / "metrics.json").read_text()
    log = workplace.train("vild_online", *options, "SOLVER.MAX_ITER", 3)
    assert "Starting training from iteration 2" in log
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2
    assert not [name for name in checkpoint["model"] if "teacher" in name]


def test_names_of_ones_own(workplace):
    scene = sorted((workplace.folder / "datasets").rglob("val/*.png"))[0]
    output = workplace.folder / "found"
    workplace.run(
        "predict.py",
        *("--config-file", "configs/pictograms/vild_text.yaml", "--input", scene),
        *("--names", "red anchor, snowman", "--output", output, "--threshold", 0.0),
        *("MODEL.WEIGHTS", workplace.start_weights),
        *("MODEL.OVD.VOCABULARY", workplace.vocabulary),
    )
    (detections,) = json.loads((output / "detections.json").read_text()).values()
    assert {one["name"] for one in detections} <= {"red anchor", "snowman"}
    assert (output / f"{scene.stem}.png").is_file()


def test_training_refuses_a_cache_of_another_teacher_before_it_starts(workplace):
    folder = workplace.folder / "cache"
    before = Manifest.load(folder)
    replace(before, teacher="Pictogram-RN-somebody-else").save(folder)
    try:
        message = workplace.train("vild", "MODEL.WEIGHTS", "", status=1)
    finally:
        before.save(folder)
    assert "somebody-else" in message
    assert "Traceback" not in message
    assert not (workplace.folder / "vild").exists()
