"""A training that was stopped and resumed is, bit by bit, the one that was not."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from itertools import islice

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm

from ovd_d2.engine.build import build_train_loader
from ovd_d2.engine.run import train
from tests.integration.conftest import TRAIN
from tests.integration.test_plugging_in_lazy import run as run_lazy
from tests.integration.test_plugging_in_yaml import mini_config
from tests.processes import exit_code, fork, run_ranks
from tests.proposal_stores import random_proposals, write_proposals

STOP, END = 4, 8
FIRST, FINAL = f"model_{STOP - 1:07d}.pth", "model_final.pth"
YAML = ("MODEL.WEIGHTS", "", "DATASETS.TEST", (), "SOLVER.MAX_ITER", END)
YAML += ("SOLVER.CHECKPOINT_PERIOD", STOP, "SEED", -1)
LAZY = (f"train.max_iter={END}", f"train.checkpointer.period={STOP}", "train.seed=-1")
LAZY += ("train.eval_period=1000000",)


@pytest.fixture
def losses(monkeypatch):
    """Losses of each iteration, of all trainings since the list was last cleared."""
    found, write = [], SimpleTrainer.write_metrics

    def recording(loss_dict, *args, **kwargs):
        found.append({name: float(value.detach()) for name, value in loss_dict.items()})
        write(loss_dict, *args, **kwargs)

    monkeypatch.setattr(SimpleTrainer, "write_metrics", staticmethod(recording))
    return found


@pytest.fixture
def with_proposals(mini):
    """Proposals where an online teacher's config looks for them."""
    dicts = DatasetCatalog.get(TRAIN)
    tensors = {
        one["image_id"]: random_proposals(4, one["height"], one["width"], k, smallest=20.0)
        for k, one in enumerate(dicts)
    }
    folder = mini.folder / "pictograms_v1" / "proposals"
    if not folder.exists():
        write_proposals(folder, dicts, tensors, dataset=TRAIN)


def assert_same(found, expected, path="checkpoint"):
    """Bit by bit, through every container."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_same(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for k, value in enumerate(expected):
            assert_same(found[k], value, f"{path}.{k}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def assert_same_end(found, expected):
    """Weights, optimiser, schedule and place in the data of two trainings' last checkpoints."""
    first, second = (torch.load(one / FINAL, weights_only=True) for one in (found, expected))
    assert {"model", "trainer", "loader"} <= second.keys()
    assert_same(first, second)


def start_again_from_the_middle(whole, part):
    part.mkdir()
    shutil.copy(whole / FIRST, part)
    (part / "last_checkpoint").write_text(FIRST)


def check_resumed(whole, part, losses, training):
    """`training(output, resume)` from the middle of `whole` ends where `whole` does."""
    training(whole, resume=False)
    assert multiprocessing.active_children() == []  # the loader's
    expected = losses[:]
    assert len(expected) == END and expected[0] != expected[1]
    start_again_from_the_middle(whole, part)
    losses.clear()
    training(part, resume=True)
    assert losses == expected[STOP:]
    assert_same_end(part, whole)


def test_from_a_cache(mini, tmp_path, arguments, losses):
    options = (*YAML, "DATALOADER.NUM_WORKERS", 2)
    options += ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")

    def training(output, resume):
        arguments.resume = resume
        train(mini_config("vild_ensemble", output, *options), arguments)

    check_resumed(tmp_path / "whole", tmp_path / "part", losses, training)


def test_with_an_online_teacher(with_proposals, tmp_path, arguments, losses):
    options = (*YAML, "INPUT.LSJ.ENABLED", True, "INPUT.LSJ.SIZE", 96)

    def training(output, resume):
        arguments.resume = resume
        train(mini_config("vild_online", output, *options), arguments)

    check_resumed(tmp_path / "whole", tmp_path / "part", losses, training)


def test_a_lazy_config(mini, tmp_path, losses):
    def training(output, resume):
        run_lazy("lazy_vild", output, *LAZY, "dataloader.train.num_workers=2", resume=resume)

    check_resumed(tmp_path / "whole", tmp_path / "part", losses, training)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_two_processes(mini, tmp_path):
    def training(output, resume):
        options = (*LAZY, "train.seed=1")

        def of_rank(_):
            comm.create_local_process_group(2)
            run_lazy("lazy_vild", output, *options, resume=resume)

        assert run_ranks(2, of_rank) == [0, 0]

    whole, part = tmp_path / "whole", tmp_path / "part"
    training(whole, resume=False)
    start_again_from_the_middle(whole, part)
    training(part, resume=True)
    assert_same_end(part, whole)


def test_a_training_that_was_killed(mini, tmp_path, arguments, losses):
    options = (*YAML, "SEED", 1)

    def training(output):
        train(mini_config("vild", output, *options), arguments)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    training(whole)
    expected = losses[:]
    child = fork(lambda: training(killed))
    while not (killed / "last_checkpoint").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    losses.clear()
    arguments.resume = True
    training(killed)
    assert losses == expected[len(expected) - len(losses) :] and len(losses) <= END - STOP
    assert_same_end(killed, whole)


def test_a_training_that_has_finished(mini, tmp_path, arguments, losses, capfd):
    done = (*YAML, "SOLVER.MAX_ITER", 1)
    train(mini_config("vild_text", tmp_path, *done), arguments)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pth")}
    losses.clear()
    arguments.resume = True
    train(mini_config("vild_text", tmp_path, *done), arguments)
    assert losses == []
    assert "has finished: 1 of 1 iterations are done" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pth")} == before
    run_lazy("lazy_vild", tmp_path / "lazy", *LAZY, "train.max_iter=1")
    losses.clear()
    run_lazy("lazy_vild", tmp_path / "lazy", *LAZY, "train.max_iter=1", resume=True)
    assert losses == []


def test_a_training_that_was_killed_before_its_last_checkpoint(mini, tmp_path, arguments):
    """The periodic checkpoint of the last iteration was written, `model_final.pth` was not."""

    def training(output, resume):
        arguments.resume = resume
        train(mini_config("vild_text", output, *YAML, "SOLVER.MAX_ITER", STOP), arguments)

    def lazy(output, resume):
        run_lazy("lazy_vild", output, *LAZY, f"train.max_iter={STOP}", resume=resume)

    for run in (training, lazy):
        whole, part = tmp_path / run.__name__, tmp_path / f"{run.__name__}_killed"
        run(whole, resume=False)
        start_again_from_the_middle(whole, part)
        run(part, resume=True)
        assert_same_end(part, whole)
        assert (part / "last_checkpoint").read_text() == FINAL


def digest_of(record):
    pixels = hashlib.sha256(record["image"].numpy().tobytes()).hexdigest()
    return record["image_id"], pixels, record["instances"].gt_boxes.tensor.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_hundred_images_and_their_pixels(mini, tmp_path, workers):
    options = ("INPUT.LSJ.ENABLED", True, "INPUT.LSJ.SIZE", 64, "DATALOADER.NUM_WORKERS", workers)
    cfg = mini_config("vild", tmp_path, *options)
    stopped = build_train_loader(cfg)
    batches = iter(stopped)
    for _ in range(7):
        next(batches)
    state = stopped.state_dict()
    expected = [digest_of(one) for batch in islice(batches, 50) for one in batch]
    resumed = build_train_loader(cfg)
    resumed.load_state_dict(state)
    assert [digest_of(one) for batch in islice(iter(resumed), 50) for one in batch] == expected
    assert len(expected) == 100 and len(set(map(str, expected))) == 100


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_training_that_was_killed_in_its_last_evaluation(
    mini, tmp_path, arguments, averaged, lazy
):
    # it had finished, said so, and its numbers were never made
    def training(resume):
        arguments.resume = resume
        if lazy:
            average = f"++train.model_ema={{enabled: {averaged}, decay: 0.5}}"
            options = ("train.max_iter=2", average)
            return run_lazy("lazy_vild", tmp_path, *LAZY, *options, resume=resume)
        options = ("MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2, "SOLVER.EMA.ENABLED", averaged)
        return train(mini_config("vild_text", tmp_path, *options), arguments)

    training(resume=False)
    results = tmp_path / "inference" / "results.json"
    (detections,) = tmp_path.glob("inference/*/lvis_instances_results.json")
    whole, boxes = results.read_text(), detections.read_text()
    assert "bbox" in boxes
    results.unlink()
    detections.unlink()
    training(resume=True)
    assert results.read_text() == whole and detections.read_text() == boxes  # the average's
    made = results.stat().st_mtime_ns
    training(resume=True)
    assert results.stat().st_mtime_ns == made
