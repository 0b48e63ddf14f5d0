"""The losses of 20 seeded iterations of every variant are those of `golden_losses.json`.

A change that is not meant to alter training leaves them equal to the last bit on every kind of
machine where they were written. On another (other processor, other torch) kernels round in another
order, which tips the choice of a proposal after a few iterations: there the first iteration is
compared closely and the sum of all loosely. To write them:
`OVD_D2_WRITE_GOLDEN=beside pytest tests/integration/test_golden_losses.py` for one more kind of
machine, `OVD_D2_WRITE_GOLDEN=anew ...` after a change that is meant to alter training.
"""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

import ovd_d2.engine.lazy
from ovd_d2.engine.run import train
from tests.integration.test_plugging_in_lazy import run as run_lazy
from tests.integration.test_plugging_in_yaml import mini_config

GOLDEN = Path(__file__).with_name("golden_losses.json")
WRITE = os.environ.get("OVD_D2_WRITE_GOLDEN", "")
ITERATIONS = 20

YAML = (
    "supervised_base",
    "vild_text",
    "vild_image",
    "vild",
    "vild_ensemble",
    "cascade",
    "pointrend",
)
LAZY = ("lazy_vild", "lazy_vild_ensemble", "lazy_vitdet")


def machine():
    """What rounding depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.is_file() else []
    kinds = ("vendor_id", "cpu family", "model\t")
    return {
        **versions,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": sorted({" ".join(line.split()) for line in lines if line.startswith(kinds)})
        or platform.machine(),
    }


@pytest.fixture
def recorded(monkeypatch):
    """Loss name -> value of each iteration, exactly as the trainer stores them."""
    losses = {}
    put_scalars = EventStorage.put_scalars

    def record(self, **values):
        for name in (one for one in values if "loss" in one):
            losses.setdefault(name, []).append(float(values[name]))
        put_scalars(self, **values)

    monkeypatch.setattr(EventStorage, "put_scalars", record)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield losses
    torch.set_num_threads(threads)


def check(name, losses):
    assert losses
    assert {len(values) for values in losses.values()} == {ITERATIONS}
    document = json.loads(GOLDEN.read_text())
    here = machine()
    records = document.get(name, [])
    if WRITE:
        others = [one for one in records if WRITE == "beside" and one["machine"] != here]
        records = document[name] = [*others, {"machine": here, "losses": losses}]
        GOLDEN.write_text(json.dumps(document, sort_keys=True).replace("]", "]\n") + "\n")
    for golden in (one["losses"] for one in records if one["machine"] == here):
        assert losses == golden
    for golden in (one["losses"] for one in records):
        assert losses.keys() == golden.keys()
        for key, values in losses.items():
            assert values[0] == pytest.approx(golden[key][0], rel=1e-4, abs=1e-5), key
            assert sum(values) == pytest.approx(sum(golden[key]), rel=0.2, abs=0.1), key


@pytest.mark.parametrize("name", YAML)
def test_yaml(name, mini, tmp_path, arguments, recorded):
    options = ("MODEL.WEIGHTS", "", "DATASETS.TEST", (), "SOLVER.MAX_ITER", ITERATIONS)
    train(mini_config(name, tmp_path, *options), arguments)
    check(name, recorded)


@pytest.mark.parametrize("name", LAZY)
def test_lazy(name, mini, tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(ovd_d2.engine.lazy, "_test", lambda *_: {})  # scores are not looked at here
    run_lazy(name, tmp_path, f"train.max_iter={ITERATIONS}")
    check(name, recorded)
