"""Sweeps: every point's options exist, and what is plotted is what was measured."""

import json

import cv2
import pytest
from benchmarks.sweeps import SWEEPS, collect_points, plot, range_table, sweep_steps

from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.steps import Run
from ovd_d2.pipeline.pipeline import repository_root


def test_the_default_of_each_sweep_is_the_configs_own_value():
    cfg = load_config(str(repository_root() / "configs/pictograms/vild_ensemble.yaml"))
    ovd = cfg.MODEL.OVD
    own = {
        "distillation_weight": str(cfg.MODEL.VILD.DISTILLATION.WEIGHT),
        "proposals": str(cfg.MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE),
        "prompts": ovd.TEACHER.PROMPTS,
        "ensemble_weight": f"{ovd.BASE_WEIGHT:.3f}",
        "temperature": str(ovd.TEMPERATURE),
    }
    for sweep in SWEEPS:
        assert sweep.default == own[sweep.name]
        assert sweep.default in [point.shown for point in sweep.points]


def test_a_step_for_each_point_but_the_default(tmp_path):
    steps = [step for step in sweep_steps(tmp_path, [0]) if step.name.startswith("sweep_")]
    assert len(steps) == sum(len(sweep.points) - 1 for sweep in SWEEPS)
    assert len({step.product for step in steps}) == len(steps)
    for step in steps:
        options = step.arguments[step.arguments.index("SEED") :]
        config = step.arguments[step.arguments.index("--config-file") + 1]
        load_config(str(repository_root() / config), options)


def test_needs_come_before(tmp_path):
    seen = set()
    for step in sweep_steps(tmp_path, [0, 1]):
        assert set(step.needs) <= seen, step.name
        seen.add(step.name)


@pytest.fixture
def measured(tmp_path):
    for seed in (0, 1):
        for name in ["vild_ensemble"] + [
            f"sweep_{sweep.name}_{point.shown}" for sweep in SWEEPS for point in sweep.points
        ]:
            folder = Run(tmp_path, seed).output(name) / "inference"
            folder.mkdir(parents=True)
            novel = 40.0 if name == "vild_ensemble" else 30.0 + seed
            numbers = {"bbox": {"AP50_base": 60.0, "AP50_novel": novel}}
            (folder / "results.json").write_text(json.dumps(numbers))
    return collect_points(tmp_path, [0, 1])


def test_rows(measured):
    assert len(measured) == 2 * sum(len(sweep.points) for sweep in SWEEPS)
    for row in measured:
        default = next(sweep.default for sweep in SWEEPS if sweep.name == row["sweep"])
        assert row["AP50_novel"] == (40.0 if row["value"] == default else 30.0 + row["seed"])


def test_plot_is_a_picture(measured, tmp_path):
    plot(measured, tmp_path / "sweeps.png")
    height, width = cv2.imread(str(tmp_path / "sweeps.png")).shape[:2]
    assert width > 3 * height > 600


def test_range_table_by_hand(measured):
    table = range_table(measured).splitlines()
    assert len(table) == 2 + len(SWEEPS)
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[:2] == ["distillation weight w", "0.5"]
    assert cells[2][:4] == cells[3][:4] == "60.0"
    assert cells[4:] == ["30.5 at 0.1", "40.0 at 0.5"]  # means of the seeds 0 and 1
