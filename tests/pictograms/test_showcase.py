"""The commands of every system's demo and tables: their options exist, their configs are there."""

from pathlib import Path

import pytest

from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.pictograms.showcase import names_step, only_once, showcases, steps_of
from ovd_d2.pictograms.steps import Run
from ovd_d2.pipeline.pipeline import Pipeline, repository_root
from ovd_d2.pipeline.step import Step
from ovd_d2.systems import systems

SHOWN = [system.name for system in systems() if system.showcase]


@pytest.fixture(params=SHOWN)
def showcase(request):
    return showcases([request.param])[request.param]


@pytest.fixture
def table_steps(showcase, tmp_path):
    runs = [Run(tmp_path, seed) for seed in (0, 1, 3)]
    return steps_of(showcase, runs, showcase.methods)


@pytest.fixture
def all_steps(showcase, table_steps, tmp_path):
    run = Run(tmp_path)
    demo = showcase.select(showcase.demo)
    named = names_step(run, demo[0], "red anchor", tmp_path / "scene.png", tmp_path / "names")
    return [*steps_of(showcase, [run], demo), named, *table_steps]


def test_scripts_exist(all_steps):
    assert all((repository_root() / step.script).is_file() for step in all_steps)


def test_configs_and_their_options_exist(all_steps):
    trained = [step for step in all_steps if step.script.endswith("train_net.py")]
    assert trained
    for step in trained:
        config = step.arguments[step.arguments.index("--config-file") + 1]
        options = list(step.arguments[step.arguments.index("SEED") :])
        cfg = load_config(str(repository_root() / config), options)
        assert Path(cfg.OUTPUT_DIR) in step.product.parents


def test_steps_are_the_same_however_the_folder_of_data_is_spelled(showcase, tmp_path, monkeypatch):
    # else trained folders would be emptied: their steps would count as others
    def histories(*spelling):
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
        for one in spelling:
            monkeypatch.setenv("DETECTRON2_DATASETS", str(one))
        steps = steps_of(showcase, [Run(tmp_path)], showcase.methods)
        return Pipeline(steps, tmp_path)._histories

    root = repository_root()
    for spelling in ("datasets", "./datasets/", root / "datasets", root / "docs/../datasets"):
        assert histories(spelling) == histories()
    (tmp_path / "link").symlink_to(tmp_path)
    assert histories(tmp_path / "link") == histories(tmp_path) != histories()


def test_every_step_of_a_table_has_its_own_name_and_product(table_steps):
    names = [step.name for step in table_steps]
    assert len(set(names)) == len(names)
    trained = [step.product for step in table_steps if "seed" in step.name]
    assert len(set(trained)) == len(trained)


def test_no_step_would_empty_the_data_sets(all_steps, tmp_path):
    folders = [step.folder for step in all_steps if step.folder is not None]
    assert all(tmp_path in folder.parents for folder in folders)


@pytest.mark.parametrize("table", ["demo", "demo_table", "methods"])
def test_what_a_step_needs_comes_before_it(showcase, tmp_path, table):
    names = [getattr(one, "name", one) for one in getattr(showcase, table)]
    seen = set()
    for step in steps_of(showcase, [Run(tmp_path, 0), Run(tmp_path, 1)], showcase.select(names)):
        assert set(step.needs) <= seen, step.name
        seen.add(step.name)


def test_claims_are_about_methods_that_there_are(showcase):
    known = {method.name for one in showcases().values() for method in one.methods}
    shown = set(showcase.demo_table)
    assert {one.method for one in showcase.expectations} <= shown
    assert {one.over for one in showcase.expectations} <= shown | {""}
    assert all(one.methods <= known for one in showcase.orderings)


def test_all_systems_stand_in_one_table(tmp_path):
    run = Run(tmp_path)
    all_steps = [step for one in showcases().values() for step in steps_of(one, [run], one.methods)]
    names = [step.name for step in only_once(all_steps)]
    assert names.count("data") == 1
    assert {run.step(m.name) for one in showcases().values() for m in one.methods} <= set(names)


def test_vild_starts_from_the_first_stage_of_its_seed(tmp_path):
    run = Run(tmp_path, 3)
    start = str(tmp_path / "seed3" / "start" / "model_final.pth")
    vild = showcases(["vild"])["ViLD"]
    for name in ("vild", "vild_text", "vild_ensemble", "clip_crops"):
        assert start in vild.method(name).step(run).arguments


def test_a_method_is_trained_or_takes_weights(tmp_path):
    vild, run = showcases(["vild"])["ViLD"], Run(tmp_path)
    assert "--eval-only" in vild.method("text_and_clip_crops").step(run).arguments
    assert vild.method("text_and_clip_crops").weights(run) == run.weights("vild_text")
    assert "--eval-only" not in vild.method("vild").step(run).arguments
    assert vild.method("vild").weights(run) == run.weights("vild")


def test_one_name_for_two_steps_is_an_error(tmp_path):
    def step(purpose):
        return Step("teach", purpose, "tools/x.py", (), tmp_path)

    assert only_once([step("a"), step("a")]) == [step("a")]
    with pytest.raises(ValueError, match="two different steps are called 'teach'"):
        only_once([step("a"), step("b")])


def test_an_unknown_system_or_method():
    with pytest.raises(SetupError, match=r"no system 'vlid' to show: name one of ViLD"):
        showcases(["vlid"])
    with pytest.raises(KeyError, match="no method 'vlid'; there are supervised_base"):
        showcases(["VILD"])["ViLD"].method("vlid")
