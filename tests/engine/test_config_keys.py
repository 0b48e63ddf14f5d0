"""Unknown keys are listed at once, and keys that nothing reads are noted."""

import pytest

from ovd_d2.engine.config_keys import default_config, idle_key_notices, unknown_key_problems
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "mine.yaml"
    base = tmp_path / "base.yaml"
    base.write_text("MODEL:\n  OVD:\n    VARIENT: vild\n")
    path.write_text("_BASE_: base.yaml\nSOLVER:\n  BASE_LR: 0.1\n  MAX_ITERS: 5\nTYPO: 1\n")
    return str(path)


def test_unknown_keys_of_the_file_its_base_and_the_options_all_at_once(config_file):
    problems = unknown_key_problems(config_file, ["MODEL.WEIGHT", "x", "SEED", "1"])
    assert len(problems) == 4
    for word in ("MODEL.OVD.VARIENT; did", "SOLVER.MAX_ITERS; did", "TYPO", "options: there"):
        assert any(word in problem for problem in problems)
    assert any("did you mean MODEL.VILD.VARIANT?" in problem for problem in problems)


def test_an_option_without_value(config_file):
    assert "'SEED' has no value" in unknown_key_problems(config_file, ["SEED"])[-1]


def test_a_key_of_an_older_version_is_an_error_that_names_the_new_one(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("SOLVER:\n  BACKBONE_MULTIPLIER: 0.3\n")
    expected = "the key SOLVER.BACKBONE_MULTIPLIER was renamed to SOLVER.LR_MULTIPLIERS"
    assert unknown_key_problems(str(path), []) == [f"{path}: {expected}"]
    assert unknown_key_problems(str(path), ["SOLVER.BACKBONE_MULTIPLIER", "1"])[1:] == [
        f"options: {expected}"
    ]
    with pytest.raises(KeyError, match=r"renamed to SOLVER\.LR_MULTIPLIERS"):
        default_config().merge_from_file(str(path))


def test_loading_a_config_lists_them_too(config_file):
    with pytest.raises(SetupError) as caught:
        load_config(config_file, ["NO.SUCH", "1"])
    assert len(caught.value.problems) == 4


def test_dashes_before_the_options():
    cfg = load_config("configs/pictograms/vild_text.yaml", ["--", "SOLVER.MAX_ITER", "3"])
    assert cfg.SOLVER.MAX_ITER == 3


def test_broken_yaml_and_a_value_of_another_type(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("MODEL: [1, 2\n")
    with pytest.raises(SetupError, match=r"broken.yaml"):
        load_config(str(path))
    path.write_text("SOLVER:\n  MAX_ITER: [1, 2]\n")
    with pytest.raises(SetupError, match="MAX_ITER"):
        load_config(str(path))


def vild_config():
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = "OpenVocabularyRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "ViLDROIHeads"
    return cfg


def test_keys_of_a_system_that_the_config_is_not_of():
    cfg = vild_config()
    cfg.MODEL.ROI_HEADS.NAME = "OpenVocabularyROIHeads"
    cfg.MODEL.VILD.VARIANT = "vild"
    (notice,) = idle_key_notices(cfg)
    assert notice == "MODEL.VILD.VARIANT 'vild' has no effect: this is no config of ViLD"


def test_idle_keys_are_noted_only_where_they_were_changed():
    cfg = vild_config()
    assert idle_key_notices(cfg) == []
    cfg.MODEL.VILD.DISTILLATION.WEIGHT = 2.0
    cfg.MODEL.OVD.BASE_WEIGHT = 0.5
    cfg.SOLVER.EMA.DECAY = 0.9
    cfg.INPUT.LSJ.SIZE = 512
    cfg.MODEL.OVD.TIMM_ARCHITECTURE = "resnet18"
    notices = idle_key_notices(cfg)
    assert len(notices) == 5
    assert (
        "MODEL.VILD.DISTILLATION.WEIGHT 2.0 has no effect: MODEL.VILD.VARIANT vild_text"
        in (notices[0])
    )
    cfg.MODEL.VILD.VARIANT = "vild_ensemble"
    cfg.SOLVER.EMA.ENABLED = True
    cfg.INPUT.LSJ.ENABLED = True
    cfg.MODEL.BACKBONE.NAME = "build_ovd_timm_fpn_backbone"
    assert idle_key_notices(cfg) == []


def test_another_box_loss_of_an_rpn_that_has_its_own_is_noted():
    cfg = default_config()
    cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "giou"
    assert idle_key_notices(cfg) == []
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LevelMeanRPN"
    (notice,) = idle_key_notices(cfg)
    assert "MODEL.RPN.BBOX_REG_LOSS_TYPE 'giou' has no effect" in notice


def test_a_closed_vocabulary_model_is_not_compiled():
    cfg = load_config("configs/pictograms/supervised_base.yaml")
    before = idle_key_notices(cfg)
    cfg.MODEL.OVD.COMPILE_BACKBONE = True
    (notice,) = set(idle_key_notices(cfg)) - set(before)
    assert notice.startswith("MODEL.OVD.COMPILE_BACKBONE True has no effect")


@pytest.mark.parametrize(
    ("architecture", "unread"),
    [("GeneralizedRCNN", 3), ("BatchInvariantRCNN", 1), ("OpenVocabularyRCNN", 0)],
)
def test_what_only_our_meta_architectures_read_is_noted_with_another(architecture, unread):
    cfg = vild_config()
    cfg.MODEL.META_ARCHITECTURE = architecture
    assert idle_key_notices(cfg) == []
    cfg.MODEL.OVD.COMPILE_BACKBONE = True
    cfg.MODEL.OVD.BATCH_NORM.EPS = 1e-4
    cfg.MODEL.OVD.BATCH_NORM.BIASED_VARIANCE = True
    why = f"has no effect: MODEL.META_ARCHITECTURE {architecture} does not read it"
    assert (
        idle_key_notices(cfg)
        == [
            f"MODEL.OVD.COMPILE_BACKBONE True {why}",
            f"MODEL.OVD.BATCH_NORM.EPS 0.0001 {why}",
            f"MODEL.OVD.BATCH_NORM.BIASED_VARIANCE True {why}",
        ][:unread]
    )


def test_idle_online_keys_are_noted():
    cfg, online = vild_config(), "MODEL.VILD.DISTILLATION.ONLINE"
    cfg.MODEL.VILD.VARIANT = "vild"
    cfg.MODEL.VILD.DISTILLATION.ONLINE.RESIZE = "squash"
    (notice,) = idle_key_notices(cfg)
    assert f"{online}.RESIZE 'squash' has no effect: {online}.PROPOSALS is empty" in notice
    cfg.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = "somewhere"
    assert idle_key_notices(cfg) == []
    cfg.MODEL.VILD.VARIANT = "vild_text"
    assert any("does not distil" in notice for notice in idle_key_notices(cfg))
