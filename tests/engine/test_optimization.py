"""Which parameters train, at which rate, with which decay."""

import pytest
import torch
from detectron2 import solver
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from timm.layers import BatchNormAct2d
from torch import nn

from ovd_d2.engine.config_keys import default_config
from ovd_d2.engine.optimization import (
    build_optimizer,
    freeze,
    lr_factor,
    optimizer_problems,
    parameter_groups,
)
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.errors import SetupError
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary, vit_config

BACKBONE = "backbone.bottom_up."


def group_of(optimizer, parameter):
    (found,) = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return found


def without_parameters(groups):
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def test_sgd_with_defaults_is_detectron2s():
    cfg = tiny_config(norm="BN")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_MULTIPLIERS = "SGD", ()
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY_BIAS", 0.01, "SOLVER.BIAS_LR_FACTOR", 2.0])
    model = build_model(cfg)
    ours, theirs = build_optimizer(cfg, model), solver.build_optimizer(cfg, model)
    assert type(ours) is type(theirs) is torch.optim.SGD
    assert ours.defaults == theirs.defaults
    assert without_parameters(ours.param_groups) == without_parameters(theirs.param_groups)
    for one, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]


def test_adamw_has_the_same_groups():
    cfg = tiny_config(norm="BN")
    model = build_model(cfg)
    groups = {}
    for name, kind in (("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)):
        cfg.SOLVER.OPTIMIZER = name
        optimizer = build_optimizer(cfg, model)
        assert type(optimizer) is kind
        groups[name] = [
            (g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups
        ]
    assert groups["SGD"] == groups["ADAMW"]
    rates = {rate for rate, _, _ in groups["SGD"]}
    assert rates == {cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR * 0.3}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(number for _, _, number in groups["SGD"]) == len(trained)


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_gradients_are_clipped_where_configured(name):
    cfg = tiny_config()
    cfg.SOLVER.OPTIMIZER = name
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True])
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    weight = model.roi_heads.box_predictor.projection.weight
    assert weight.grad.unique().tolist() == [0.5]


def test_the_longest_beginning_counts():
    factors = {BACKBONE: 0.3, "": 2.0, f"{BACKBONE}res5.": 1.5}
    assert lr_factor(f"{BACKBONE}res5.conv.weight", factors) == 1.5
    assert lr_factor(f"{BACKBONE}res4.conv.weight", factors) == 0.3
    assert lr_factor("roi_heads.weight", factors) == 2.0
    assert lr_factor("roi_heads.weight", {BACKBONE: 0.3}) == 1.0


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_multipliers_of_a_vit_and_its_positions_without_decay(name):
    cfg = vit_config()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = name, 1.0
    cfg.SOLVER.LR_MULTIPLIERS = [["backbone.net.", 0.25], ["backbone.net.blocks.0.", 0.5]]
    backbone = build_model(cfg).backbone
    model = nn.Module()
    model.backbone = backbone
    optimizer = build_optimizer(cfg, model)
    first, last = (backbone.net.blocks[k].attn.qkv for k in (0, 2))
    assert group_of(optimizer, first.weight)["lr"] == 0.5
    assert group_of(optimizer, last.weight)["lr"] == 0.25
    assert group_of(optimizer, backbone.simfp_4[0].weight)["lr"] == 1.0
    assert group_of(optimizer, last.weight)["weight_decay"] == cfg.SOLVER.WEIGHT_DECAY > 0
    assert group_of(optimizer, backbone.net.pos_embed)["weight_decay"] == 0
    cfg.SOLVER.NO_DECAY = ["bias"]
    optimizer = build_optimizer(cfg, model)
    assert group_of(optimizer, last.bias)["weight_decay"] == 0
    assert group_of(optimizer, backbone.net.pos_embed)["weight_decay"] > 0


def test_a_bias_has_both_factors_and_no_decay_wins():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(1))  # the model's own, in no module
    groups = parameter_groups(
        model,
        base_lr=1.0,
        lr_multipliers=[("0.", 0.5), ("scale", 4.0)],
        bias_lr_factor=2.0,
        weight_decay_bias=0.1,
        no_decay=["scale"],
    )
    found = {id(p): (g["lr"], g.get("weight_decay")) for g in groups for p in g["params"]}
    assert found[id(model[0].weight)] == (0.5, None)
    assert found[id(model[0].bias)] == (1.0, 0.1)
    assert found[id(model[1].bias)] == (2.0, 0.1)
    assert found[id(model.scale)] == (4.0, 0.0)
    groups = parameter_groups(model, base_lr=1.0, weight_decay_bias=0.1, no_decay=["bias"])
    assert {g["weight_decay"] for g in groups if model[0].bias in set(g["params"])} == {0.0}


def test_multipliers_of_no_parameter_are_all_named_with_what_there_is():
    cfg = tiny_config()
    cfg.SOLVER.LR_MULTIPLIERS = [["backbone.botom_up.", 0.1], [BACKBONE, 0.3], ["language.", 0.1]]
    with pytest.raises(SetupError) as caught:
        build_optimizer(cfg, build_model(cfg))
    first, second = caught.value.problems
    assert "SOLVER.LR_MULTIPLIERS: no parameter's name begins with 'backbone.botom_up.'" in first
    assert "there are backbone.bottom_up.," in first
    assert "'language.'; there are backbone., proposal_generator., roi_heads." in second


def frozen_model(*prefixes, norm="BN"):
    cfg = tiny_config(norm=norm)
    cfg.MODEL.OVD.FREEZE = prefixes
    model = build_model(cfg)
    model.set_vocabulary(tiny_vocabulary())
    freeze(model, cfg.MODEL.OVD.FREEZE)
    return cfg, model


def test_frozen_parts_keep_weights_and_statistics_while_the_rest_trains():
    cfg, model = frozen_model(BACKBONE, "roi_heads.box_head.")
    norms = [m for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms and model.roi_heads.box_head.fc1.norm in norms
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.roi_heads.box_head.modules())
    cfg.SOLVER.LR_MULTIPLIERS = ()
    optimizer = build_optimizer(cfg, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with EventStorage():
        sum(model([tiny_input(), tiny_input(seed=1)]).values()).backward()
    optimizer.step()
    after = model.state_dict()
    frozen = [name for name in after if name.startswith((BACKBONE, "roi_heads.box_head."))]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(
        before["roi_heads.box_predictor.projection.weight"],
        after["roi_heads.box_predictor.projection.weight"],
    )
    pyramid = [name for name in after if name.startswith("backbone.fpn") and "running" in name]
    assert pyramid and not all(torch.equal(before[name], after[name]) for name in pyramid)


def test_the_trainer_freezes_what_the_config_says():
    cfg = tiny_config(norm="BN")
    cfg.MODEL.OVD.FREEZE = ["backbone.", "proposal_generator."]
    model = OpenVocabularyTrainer.build_model(cfg)
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"roi_heads"}
    assert not any(isinstance(one, nn.BatchNorm2d) for one in model.backbone.modules())


def test_a_frozen_model_loads_and_detects_as_before():
    torch.manual_seed(0)
    _, plain = frozen_model()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    _, model = frozen_model(BACKBONE, "roi_heads.")
    assert set(model.state_dict()) == set(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    one = tiny_input()
    with torch.no_grad():
        found, expected = (m.eval().backbone(one["image"][None].float()) for m in (model, plain))
    for level, features in expected.items():
        torch.testing.assert_close(found[level], features, rtol=1e-4, atol=1e-5)


def test_a_norm_with_an_activation_keeps_it():
    model = nn.Sequential(BatchNormAct2d(3, act_layer=nn.ReLU), nn.Conv2d(3, 3, 1))
    model[0].running_mean.fill_(1.0)
    x = torch.zeros(2, 3, 4, 4)
    freeze(model, ["0."])
    assert model.train()(x).requires_grad
    assert model[0](x).unique().tolist() == [0.0]  # -1 without the ReLU
    assert model[0].running_mean.tolist() == [1.0] * 3


def test_what_cannot_be_frozen():
    with pytest.raises(
        SetupError, match=r"'backbone\.bottom_up\.res9\.'; there are backbone\.bottom"
    ):
        frozen_model("backbone.bottom_up.res9.")
    with pytest.raises(SetupError, match="no parameter is left to train"):
        frozen_model("backbone.", "proposal_generator.", "roi_heads.")
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    with pytest.raises(SetupError, match="0 is a BatchNorm1d, whose statistics would go on"):
        freeze(model, ["0."])


def problems_of(**options):
    cfg: CfgNode = default_config()
    for key, value in options.items():
        cfg.SOLVER[key] = value
    return list(optimizer_problems(cfg))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"OPTIMIZER": "LION"}, "'LION' is neither SGD nor ADAMW"),
        (
            {"LR_MULTIPLIERS": ["backbone.", 0.3]},
            "SOLVER.LR_MULTIPLIERS: ['backbone.', 0.3] are not",
        ),
        ({"LR_MULTIPLIERS": [["backbone.", -1]]}, "a factor >= 0"),
        ({"LR_MULTIPLIERS": [["backbone.", "0.3"]]}, "are not pairs"),
        ({"NO_DECAY": "bias"}, "SOLVER.NO_DECAY: 'bias' is not a list of names"),
        (
            {"EMA": CfgNode({"ENABLED": True, "DECAY": 1.0})},
            "SOLVER.EMA.DECAY: 1.0 is not a number between 0 and 1",
        ),
    ],
)
def test_values_that_cannot_be_meant(options, expected):
    (problem,) = problems_of(**options)
    assert expected in problem


def test_values_that_can_be_meant():
    assert problems_of(LR_MULTIPLIERS=[["backbone.", 0], ("roi_heads.", 2.5)], NO_DECAY=[]) == []


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_gradients_of_the_full_model_are_clipped_together(name):
    cfg = tiny_config()
    cfg.SOLVER.OPTIMIZER = name
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE = True, "full_model", 1.0
    model = nn.ModuleDict({key: nn.Linear(1, 1, bias=False) for key in "ab"})
    cfg.SOLVER.LR_MULTIPLIERS = ()
    optimizer = build_optimizer(cfg, model)
    for gradient, expected in (((3.0, 4.0), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4))):
        for layer, value in zip(model.values(), gradient, strict=True):
            layer.weight.grad = torch.full((1, 1), value)
        optimizer.step()
        found = [layer.weight.grad.item() for layer in model.values()]
        assert found == pytest.approx(expected, rel=1e-5)


def test_an_unknown_way_to_clip_is_named():
    cfg = tiny_config()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    assert list(optimizer_problems(cfg)) == []
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "model"
    assert any(
        "CLIP_TYPE: 'model' is not one of value, norm, full_model" in p
        for p in optimizer_problems(cfg)
    )


def test_what_counts_as_a_bias_is_said_by_names():
    model = torch.nn.Linear(2, 2)
    model.register_parameter("table", torch.nn.Parameter(torch.zeros(3)))
    for names, expected in ((("bias",), 1.0), (("bias", "table"), 2.0)):
        groups = parameter_groups(model, base_lr=1.0, bias_lr_factor=2.0, bias_names=names)
        rates = {id(one): group["lr"] for group in groups for one in group["params"]}
        found = [rates[id(one)] for one in (model.weight, model.bias, model.table)]
        assert found == [1.0, 2.0, expected]
