"""The losses of 20 seeded iterations of every variant are those of `golden_losses.json`.

A change that is not meant to alter training leaves them equal to the last bit on the kind of
machine where they were written; elsewhere (other processor, other torch) kernels round in another
order, which training amplifies, so there they are compared closely at first and loosely later.
After a change that is meant to alter training:
`OVD_D2_WRITE_GOLDEN=1 pytest tests/integration/test_golden_losses.py`
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
WRITE = bool(os.environ.get("OVD_D2_WRITE_GOLDEN"))
ITERATIONS = 20
CLOSE = 5  # iterations in which rounding has not grown yet

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
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "torchvision", "pillow")
    }
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
    document = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {"losses": {}}
    if WRITE:
        document["machine"] = machine()
        document["losses"][name] = losses
        GOLDEN.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    golden = document["losses"][name]
    if document["machine"] == machine():
        assert losses == golden
        return
    assert losses.keys() == golden.keys()
    for key, values in losses.items():
        assert values[:CLOSE] == pytest.approx(golden[key][:CLOSE], rel=1e-3, abs=1e-4), key
        assert sum(values) == pytest.approx(sum(golden[key]), rel=0.1, abs=0.1), key


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
