"""The tools' processes, started by torchrun and by Detectron2's launch, build one store."""

from __future__ import annotations

import argparse
import re
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
import torch.distributed.run

from ovd_d2.cache import EmbeddingCache
from ovd_d2.engine import launching
from ovd_d2.engine.launching import (
    add_device_argument,
    add_launch_arguments,
    available_device,
    launch_processes,
    on_main_process,
    usable_device,
)
from ovd_d2.errors import SetupError
from tests.processes import run_ranks
from tests.programs import ROOT, run_program

PROGRAM = Path(__file__).with_name("rank_build.py")
ENVIRONMENT = {"PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""}


def test_torchrun(tmp_path: Path) -> None:
    torchrun, options = torch.distributed.run.__file__, ("--standalone", "--nproc-per-node", 2)
    done = run_program(torchrun, *options, PROGRAM, tmp_path, **ENVIRONMENT)
    assert done.status == 0, done.stderr
    cache = EmbeddingCache(tmp_path)
    assert cache.verify() == []
    assert list(cache) == list(range(5))
    assert [shard.images for shard in cache.manifest.shards] == [2, 2, 1]


def test_a_process_that_fails_ends_the_others_and_says_why(tmp_path: Path) -> None:
    done = run_program(PROGRAM, tmp_path, "--num-gpus", 2, "--fail", 3, **ENVIRONMENT)
    assert done.status == 1
    assert "image 3 is bad" in done.stderr
    # A thread of a library may abort the interpreter on its way out, with SIGABRT in place of 1.
    assert re.search(r"process 1 of this machine ended with status (1|-6)\n", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "index.safetensors").exists()


def test_one_process_runs_here() -> None:
    parser = argparse.ArgumentParser()
    add_launch_arguments(parser)
    seen: list[argparse.Namespace] = []
    launch_processes(seen.append, parser.parse_args([]))
    assert vars(seen[0]) == {
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "auto",
    }


def test_torchrun_is_known_by_all_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launching._TORCHRUN:
        monkeypatch.setenv(name, "0")
    assert launching.under_torchrun()
    monkeypatch.delenv("LOCAL_RANK")
    assert not launching.under_torchrun()


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [
        ("nothere", 8, "'nothere' is no device of PyTorch"),
        ("cuda", 0, "PyTorch finds 0 GPUs"),
        ("cuda:2", 2, "'cuda:2' is not there: PyTorch finds 2 GPUs"),
    ],
)
def test_a_device_that_is_not_there(
    name: str,
    gpus: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    parser = argparse.ArgumentParser()
    add_device_argument(parser)
    assert parser.parse_args(["--device", "cpu"]).device == "cpu"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", name])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device(name) == name


@pytest.mark.parametrize("name", ["xpu", "mps", "hpu:1"])
def test_another_kind_of_device_that_does_not_work(name: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "ones", refuse)
    assert launching.available_device(name) == "cpu"
    assert f"MODEL.DEVICE is '{name}'" in caplog.text and "using cpu" in caplog.text


def refuse(*_, **__):
    raise AssertionError("Torch not compiled with it")


def faulty():
    raise SetupError(["no such file"])


def test_one_process_checks_and_raises():
    assert on_main_process(lambda: 3) == 3
    with pytest.raises(SetupError, match="no such file"):
        on_main_process(faulty)


def test_rank_0_checks_for_all(tmp_path):
    def check(rank):
        looked = tmp_path / f"looked_{rank}"
        result = on_main_process(lambda: looked.write_text("") or {"notices": [rank]})
        assert result == {"notices": [0]}

    assert run_ranks(2, check) == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["looked_0"]


def test_rank_0_says_what_is_wrong_once_and_all_ranks_end(tmp_path):
    def check(rank):
        with (tmp_path / f"{rank}.txt").open("w") as stream, redirect_stderr(stream):
            try:
                on_main_process(faulty)
            except SystemExit as stop:
                assert stop.code == 1
                return
        raise AssertionError("it went on")

    assert run_ranks(2, check) == [0, 0]
    assert "no such file" in (tmp_path / "0.txt").read_text()
    assert (tmp_path / "1.txt").read_text() == ""


def test_a_run_takes_the_device_that_is_there(monkeypatch, caplog):
    for count, wanted, taken in ((0, "cuda", "cpu"), (1, "cuda:3", "cuda"), (0, "cpu", "cpu")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        caplog.clear()
        assert available_device(wanted) == taken
        assert len(caplog.records) == (wanted != taken)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert available_device("cuda:3") == "cuda:3"
    with pytest.raises(SetupError, match="MODEL.DEVICE: 'gpu' is no device"):
        available_device("gpu")
