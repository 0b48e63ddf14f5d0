"""Every config builds; the recipes are the published ones; keys that cannot be meant are told."""

from pathlib import Path

import open_clip
import pytest
import torch
from detectron2.solver import build_lr_scheduler

from ovd_d2.clip.loading import configured_image_size
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.data.augmentation import smallest_resize
from ovd_d2.engine.checks import config_problems
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.optimization import build_optimizer
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.model import CLIPSelf
from ovd_d2.systems import system_of
from tests.projects.clipself.conftest import CONFIGS
from tests.tiny_vits import EVA, FAMILIES, NATIVE, folder_of_architecture, tiny_teacher

ALL = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("clipself_*.yaml")
    if path.stem != "clipself_base"
)
RECIPES = [one for one in ALL if "/" not in one]
BASE = "clipself_eva_b16_patches.yaml"


def config(name, *options):
    return load_config(str(CONFIGS / name), ["MODEL.DEVICE", "cpu", *options])


class MetaTeacher(CLIPTeacher):
    """The network of an architecture without weights."""

    def __init__(self, architecture):
        self.architecture, self.device = architecture, torch.device("meta")
        self._model = untrained_model(architecture, "meta").requires_grad_(False)


def test_there_are_configs():
    assert len(ALL) == 18 and BASE in ALL


@pytest.mark.parametrize("name", ALL)
def test_config_builds(name, monkeypatch):
    cfg = config(name)
    assert system_of(cfg).name == "CLIPSelf"
    architecture = cfg.MODEL.OVD.TEACHER.ARCHITECTURE
    teacher = MetaTeacher(architecture)
    monkeypatch.setattr(f"{CLIPSelf.__module__}.configured_teacher", lambda *_, **__: teacher)
    model = CLIPSelf(cfg)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 1e6
    assert model.student.embedding_dim == cfg.MODEL.OVD.EMBEDDING_DIM
    assert model.image_size % model.student.patch_size == 0
    assert model.student.window == cfg.MODEL.CLIPSELF.WINDOW_SIZE
    assert configured_image_size(cfg) == model.teacher._model.visual.image_size[0]


@pytest.mark.parametrize("name", ALL)
def test_config_is_sound(name, tmp_path):
    cfg = config(name, "OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", False)
    assert list(config_problems(cfg, training=True)) == []
    assert idle_key_notices(cfg) == []
    size = cfg.MODEL.CLIPSELF.IMAGE_SIZE
    assert smallest_resize(cfg, is_train=True) == (size, size)
    assert (size, size) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


@pytest.mark.parametrize("name", ALL)
def test_output_folder_is_the_configs_name(name):
    assert f"./output/{Path(name).with_suffix('')}" == config(name).OUTPUT_DIR


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_published_ones(name):
    cfg = config(name)
    large, openai = "l14" in name, "openai" in name
    found = cfg.MODEL.CLIPSELF.ALPHA, cfg.MODEL.CLIPSELF.IMAGE_SIZE
    assert found == ((0.95, 896) if large else (0.7, 1024))
    assert ("proposals" if "proposals" in name else "patches") == cfg.MODEL.CLIPSELF.REGIONS
    solver = cfg.SOLVER
    expected = (16, 8) if "sync" in name else (2, 1)
    assert expected == (solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE)
    assert (solver.MAX_ITER, solver.BASE_LR, solver.WEIGHT_DECAY) == (44358, 1e-5, 0.1)
    assert (*solver.BETAS, solver.EPS) == ((0.9, 0.98, 1e-6) if openai else (0.9, 0.999, 1e-8))
    assert solver.AMP.ENABLED and solver.MAX_ITER == 6 * solver.CHECKPOINT_PERIOD
    teacher = cfg.MODEL.OVD.TEACHER
    tags = open_clip.list_pretrained_tags_by_model(teacher.ARCHITECTURE)
    assert teacher.PRETRAINED in tags


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_two_dimensions_decays(family):
    model = CLIPSelf(teacher=tiny_teacher(family), image_size=32, alpha=0.7)
    optimizer = build_optimizer(config("clipself_openai_b16_patches.yaml"), model)
    assert isinstance(optimizer, torch.optim.AdamW)
    trained = [one for one in model.parameters() if one.requires_grad]
    grouped = [one for group in optimizer.param_groups for one in group["params"]]
    assert {id(one) for one in grouped} == {id(one) for one in trained}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.98), 1e-6, 1e-5)
        for one in group["params"]:
            assert group["weight_decay"] == (0.1 if one.ndim >= 2 else 0.0)


def test_the_rate_warms_up_and_falls_to_nothing():
    cfg = config(BASE)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    multiplier = build_lr_scheduler(cfg, optimizer)._multiplier
    for step in (0, 1, 500, 998):
        assert multiplier(step / cfg.SOLVER.MAX_ITER) == pytest.approx((step + 1) / 1000)
    for step in (999, 1000):
        assert multiplier(step / cfg.SOLVER.MAX_ITER) == pytest.approx(1)
    assert multiplier(1 - 1 / cfg.SOLVER.MAX_ITER) < 1e-8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("REGIONS", "boxes"), "REGIONS: 'boxes' is neither patches nor proposals"),
        (("REGIONS_PER_IMAGE", 0), "REGIONS_PER_IMAGE: 0, expected at least 1"),
        (("MAX_ROWS", 0), "MAX_ROWS: 0, expected at least 1"),
        (("PROPOSAL_AREA", (9, 4)), "PROPOSAL_AREA: (9, 4) is not (smallest, largest)"),
        (("CROP_SCALE", 0.0), "CROP_SCALE: 0.0 is not positive"),
        (("WINDOW_SIZE", -1), "WINDOW_SIZE: -1 is negative"),
        (("ALPHA", 1.5), "ALPHA: 1.5 is not between 0 and 1"),
        (("IMAGE_SIZE", 512), "INPUT.LSJ.SIZE is 1024, expected 512"),
    ],
)
def test_values_that_cannot_be_meant(options, message, tmp_path):
    cfg = config(BASE, "OUTPUT_DIR", str(tmp_path), f"MODEL.CLIPSELF.{options[0]}", options[1])
    (problem,) = config_problems(cfg, training=False)
    assert problem.startswith("INPUT." if options[0] == "IMAGE_SIZE" else "MODEL.CLIPSELF.")
    assert message in problem


@pytest.mark.parametrize(
    "options",
    [
        ("INPUT.FORMAT", "BGR"),
        ("INPUT.RANDOM_FLIP", "horizontal"),
        ("INPUT.RESIZE", "pillow"),
        ("INPUT.LSJ.MIN_SCALE", 0.1),
        ("INPUT.LSJ.ENABLED", False),
        ("INPUT.LSJ.PAD", True),
        ("TEST.OVD.VALIDATION_LOSS", True),
        ("SOLVER.BETAS", (0.9, 1.0)),
        ("SOLVER.EPS", 0.0),
    ],
)
def test_an_input_that_would_not_be_the_whole_image(options, tmp_path):
    cfg = config(BASE, "OUTPUT_DIR", str(tmp_path), *options)
    (problem,) = config_problems(cfg, training=False)
    assert options[0] in problem


def test_keys_that_do_nothing():
    names = {"MAX_ROWS": 3, "PROPOSALS": "x.json", "GLOBAL_ATTENTION_BLOCKS": (1,)}
    for name, idle in (
        (BASE, {"PROPOSALS", "GLOBAL_ATTENTION_BLOCKS"}),
        ("clipself_eva_b16_proposals.yaml", {"MAX_ROWS", "GLOBAL_ATTENTION_BLOCKS"}),
    ):
        pairs = [item for key, value in names.items() for item in (f"MODEL.CLIPSELF.{key}", value)]
        notices = idle_key_notices(config(name, *pairs))
        assert {one.split()[0].removeprefix("MODEL.CLIPSELF.") for one in notices} == idle
    (notice,) = idle_key_notices(config(BASE, "MODEL.VILD.VARIANT", "vild"))
    assert "this is no config of ViLD" in notice
    (notice,) = idle_key_notices(config(BASE, "SOLVER.OPTIMIZER", "SGD", "SOLVER.EPS", 1e-6))
    assert notice == "SOLVER.EPS 1e-06 has no effect: SOLVER.OPTIMIZER is SGD"


def test_the_size_of_crops_is_the_teachers(tmp_path):
    for family in (NATIVE, EVA):
        folder_of_architecture(tmp_path, family)
        cfg = config(BASE, "MODEL.OVD.TEACHER.ARCHITECTURE", family)
        assert configured_image_size(cfg) == 32
    cfg = config(BASE, "MODEL.OVD.TEACHER.ARCHITECTURE", "nonsense")
    with pytest.raises(SetupError, match="unknown open_clip architecture 'nonsense'"):
        configured_image_size(cfg)
