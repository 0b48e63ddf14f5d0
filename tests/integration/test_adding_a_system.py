"""A system plugs in from outside in about a hundred lines; no shared file knows its name."""

import json
import sys
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import run_demo
import torch
from benchmarks.tables import METRICS, check_orderings, orderings_about, table_of
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from torch import Tensor

import ovd_d2.systems
from ovd_d2.data.passengers import MappedImage, Passenger
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config, train
from ovd_d2.errors import SetupError
from ovd_d2.evaluation import build_evaluator
from ovd_d2.modeling.roi_heads import OpenVocabularyROIHeads
from ovd_d2.pictograms.showcase import (
    Method,
    Ordering,
    Showcase,
    only_once,
    showcases,
    steps_of,
)
from ovd_d2.pictograms.steps import Run, backbone_step, data_step, vocabulary_step
from ovd_d2.structures import PerImage
from ovd_d2.systems import System, register_system, system_of
from tests.catalog import forget
from tests.integration.conftest import read_results
from tests.integration.test_plugging_in_yaml import ROOT, mini_config

# A system as another package would bring it: its heads learn, besides the names, how bright an
# image is. The target rides with the image; the loader adds the loss's weight to every input.


def add_toy_config(cfg: CfgNode) -> None:
    cfg.MODEL.TOY = CfgNode()
    cfg.MODEL.TOY.WEIGHT = 0.5


class Brightness(Passenger):
    """Mean of the image before augmentation, (1,) float32 in [0, 1], on `instances`."""

    def __call__(self, image: MappedImage) -> None:
        value = torch.tensor([image.pixels.mean() / 255], dtype=torch.float32)
        instances = image.record["instances"]
        instances.set("brightness", PerImage(value, len(instances)))


def brightness_loss(features: Tensor, target: Tensor, weight: float) -> Tensor:
    """Squared error of the mean activation: (N, C, H, W) and (N,) -> scalar."""
    return weight * (features.mean(dim=(1, 2, 3)).sigmoid() - target).square().mean()


@ROI_HEADS_REGISTRY.register()
class ToyROIHeads(OpenVocabularyROIHeads):
    def forward(self, images, features, proposals, targets=None):
        result, losses = super().forward(images, features, proposals, targets)
        if self.training:
            target = torch.cat([one.get("brightness").value for one in targets])
            losses["loss_brightness"] = brightness_loss(features["p3"], target, 0.5)
        return result, losses


def toy_key_problems(cfg: CfgNode) -> Iterable[str]:
    if cfg.MODEL.TOY.WEIGHT < 0:
        yield f"MODEL.TOY.WEIGHT: {cfg.MODEL.TOY.WEIGHT} must not be negative"


def toy_problems(cfg: CfgNode, context: ovd_d2.systems.SetupContext) -> Iterable[str]:
    if len(context.training_images) < cfg.MODEL.TOY.WEIGHT:
        yield f"MODEL.TOY.WEIGHT: more than the {len(context.training_images)} training images"


SEEN: list[int] = []  # image ids that went through the wrapped loader


def watched(cfg, loader):
    for batch in loader:
        SEEN.extend(record["image_id"] for record in batch)
        yield batch


TOY = System(
    name="Toy",
    node="MODEL.TOY",
    is_configured=lambda cfg: cfg.MODEL.ROI_HEADS.NAME == "ToyROIHeads",
    add_config=add_toy_config,
    renamed_keys={"MODEL.OLD_TOY": "MODEL.TOY"},
    key_problems=toy_key_problems,
    problems=toy_problems,
    passengers=lambda cfg: [Brightness()],
    evaluators={"brightness": lambda cfg, name, folder: f"brightness of {name} in {folder}"},
    wrap_loader=watched,
    showcase=__name__,
)

# What it shows: trained straight on the shared data, from the shared backbone.
SHOWCASE = Showcase(
    prepare=lambda run: [data_step(), backbone_step(), vocabulary_step()],
    methods=(Method("projects/Toy/toy.yaml", "Toy", needs=lambda run: ("backbone", "vocabulary")),),
    demo=("toy",),
    orderings=(Ordering("APr: Toy < ViLD", "segm APr", "toy", "<", "vild"),),
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(ovd_d2.systems, "_registered", {})
    register_system(TOY)
    SEEN.clear()


def toy_config(output, *options):
    return mini_config("base", output, "MODEL.ROI_HEADS.NAME", "ToyROIHeads", *options)


def test_it_trains_evaluates_and_is_found(toy, mini, tmp_path, arguments):
    cfg = toy_config(tmp_path, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2)
    assert system_of(cfg).name == "Toy"
    train(cfg, arguments)
    written = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any(0 < line.get("loss_brightness", 0) < 0.5 for line in written)
    assert {"loss_cls", "loss_mask"} <= {key for line in written for key in line}
    assert len(SEEN) >= 4
    assert "AP50_novel" in read_results(tmp_path)["bbox"]


def test_its_data_sets_are_evaluated_its_way(toy, tmp_path):
    DatasetCatalog.register("tests_bright", list)
    MetadataCatalog.get("tests_bright").evaluator_type = "brightness"
    try:
        evaluator = build_evaluator(toy_config(tmp_path), "tests_bright", "out")
    finally:
        forget("tests_bright")
    assert evaluator == "brightness of tests_bright in out"


def test_its_problems_are_listed_with_all_others(toy, mini, tmp_path):
    options = ("MODEL.WEIGHTS", "nowhere.pth", "MODEL.OVD.BASE_WEIGHT", 2.0, "MODEL.TOY.WEIGHT")
    for value, message in ((-1.0, "must not be negative"), (1e6, "more than the 30 training")):
        with pytest.raises(SetupError) as caught:
            check_setup(toy_config(tmp_path, *options, value), training=True)
        assert len(caught.value.problems) == 3
        assert any(message in problem for problem in caught.value.problems)


def test_its_keys_are_idle_under_another_system(toy, mini, tmp_path):
    cfg = mini_config("vild_text", tmp_path, "MODEL.TOY.WEIGHT", 0.25)
    assert "MODEL.TOY.WEIGHT 0.25 has no effect: this is no config of Toy" in idle_key_notices(cfg)


def test_its_renamed_keys_are_errors_that_name_the_new_ones(toy, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(f"_BASE_: {ROOT}/configs/pictograms/base.yaml\nMODEL:\n  OLD_TOY: {{}}\n")
    with pytest.raises(SetupError, match=r"MODEL.OLD_TOY.* MODEL.TOY"):
        load_config(str(path))


def test_its_demo(toy, tmp_path):
    showcase = showcases(["toy"])["Toy"]
    steps = steps_of(showcase, [Run(tmp_path)], showcase.select(showcase.demo))
    assert [step.name for step in steps] == ["data", "backbone", "vocabulary", "toy_seed0"]
    assert steps[-1].arguments[:2] == ("--config-file", "projects/Toy/toy.yaml")
    assert steps[-1].needs == ("backbone", "vocabulary")


def test_make_demo_shows_it(toy, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        run_demo,
        "Pipeline",
        lambda steps, folder: SimpleNamespace(run=lambda: ran.extend(step.name for step in steps)),
    )
    monkeypatch.setattr(run_demo, "scene_for", lambda names, dataset_name: tmp_path / "scene.png")
    monkeypatch.setattr(run_demo, "write_report", lambda folder, name, outputs, _: str(outputs))
    monkeypatch.setattr(sys, "argv", ["run_demo.py", "--system", "toy", "--output", str(tmp_path)])
    run_demo.main()
    assert ran == ["data", "backbone", "vocabulary", "toy_seed0", "names"]
    said = capsys.readouterr().out
    assert f"'Toy': {tmp_path / 'seed0' / 'toy'!r}" in said
    # Where another system's demo in this folder leaves them as they are.
    for file in ("report.txt", "pictures.png", "your_names/scene.png"):
        assert f" {tmp_path / 'toy' / file}\n" in said


def test_it_stands_in_one_table_with_vild(toy, tmp_path):
    runs = [Run(tmp_path, 0), Run(tmp_path, 1)]
    steps = [s for one in showcases().values() for s in steps_of(one, runs, one.methods)]
    names = [step.name for step in only_once(steps)]
    assert names.count("data") == names.count("toy_seed1") == names.count("vild_seed1") == 1

    def row(method, value):
        metrics = {**dict.fromkeys(METRICS), "APr": value}
        return {"method": method, "seed": 0, "box": metrics, "segm": metrics, "ms_per_image": 9.0}

    rows = [row("vild", 2.0), row("toy", 1.0)]
    table, claims = table_of(rows), orderings_about(rows)
    assert "| toy " in table and "| vild " in table
    assert [(one.claim, holds) for one, _, holds in check_orderings(rows, claims)] == [
        ("APr: Toy < ViLD", True)
    ]


def test_a_name_is_given_once(toy):
    with pytest.raises(ValueError, match="'Toy' is registered already"):
        register_system(TOY)


def test_a_config_of_two_systems(toy, monkeypatch, tmp_path):
    twin = System(
        name="Twin", node="MODEL.TWIN", is_configured=TOY.is_configured, add_config=lambda cfg: None
    )
    register_system(twin)
    cfg = load_config(str(ROOT / "configs/pictograms/base.yaml"))
    cfg.MODEL.ROI_HEADS.NAME = "ToyROIHeads"
    with pytest.raises(ValueError, match="one of Toy and Twin"):
        system_of(cfg)
