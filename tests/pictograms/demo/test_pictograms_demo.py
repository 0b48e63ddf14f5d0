"""The demo's commands: every option they pass exists, every config is there."""

from pathlib import Path

import pytest
from benchmarks.tables import DEMO_METHODS, PAPER_METHODS

from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.demo.pictograms import Run, benchmark_steps, demo_steps, names_step
from ovd_d2.pictograms.demo.steps import repository_root


@pytest.fixture
def all_steps(tmp_path):
    named = names_step(Run(tmp_path), "red anchor", tmp_path / "scene.png")
    return [*demo_steps(tmp_path), named, *benchmark_steps(tmp_path, [0, 1], PAPER_METHODS)]


def test_scripts_exist(all_steps):
    assert all((repository_root() / step.script).is_file() for step in all_steps)


def test_configs_and_their_options_exist(all_steps):
    trained = [step for step in all_steps if step.script.endswith("train_net.py")]
    assert len(trained) >= 10
    for step in trained:
        config = step.arguments[step.arguments.index("--config-file") + 1]
        options = list(step.arguments[step.arguments.index("SEED") :])
        cfg = load_config(str(repository_root() / config), options)
        assert Path(cfg.OUTPUT_DIR) in step.product.parents


def test_every_step_of_a_benchmark_has_its_own_name_and_product(tmp_path):
    steps = benchmark_steps(tmp_path, [0, 1, 2], PAPER_METHODS)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    trained = [step.product for step in steps if "seed" in step.name]
    assert len(set(trained)) == len(trained)


def test_no_step_would_empty_the_data_sets(all_steps, tmp_path):
    folders = [step.folder for step in all_steps if step.folder is not None]
    assert all(tmp_path in folder.parents for folder in folders)


def test_fine_tuned_methods_start_from_the_first_stage_of_their_seed(tmp_path):
    for step in benchmark_steps(tmp_path, [3], PAPER_METHODS):
        if step.name in (
            "vild_seed3",
            "vild_text_seed3",
            "vild_ensemble_seed3",
            "clip_crops_seed3",
        ):
            assert str(tmp_path / "seed3" / "start" / "model_final.pth") in step.arguments


@pytest.mark.parametrize("methods", [DEMO_METHODS, PAPER_METHODS])
def test_what_a_step_needs_comes_before_it(tmp_path, methods):
    seen = set()
    for step in benchmark_steps(tmp_path, [0, 1], methods):
        assert set(step.needs) <= seen, step.name
        seen.add(step.name)
