"""What trains, and how fast: frozen parts, groups of parameters, the optimiser."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2 import solver
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from timm.layers import BatchNormAct2d, SyncBatchNormAct, freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ovd_d2.errors import SetupError

OPTIMIZERS = ("SGD", "ADAMW")
FULL_MODEL = "full_model"  # a SOLVER.CLIP_GRADIENTS.CLIP_TYPE beside Detectron2's two
CLIP_TYPES = ("value", "norm", FULL_MODEL)
MULTIPLIERS_KEY, FREEZE_KEY = "SOLVER.LR_MULTIPLIERS", "MODEL.OVD.FREEZE"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2's, or AdamW, as `SOLVER.OPTIMIZER` says, over :func:`parameter_groups`.

    Raises:
        SetupError: a multiplier is of no parameter.
    """
    options = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=options.BASE_LR,
        lr_multipliers=options.LR_MULTIPLIERS,
        bias_lr_factor=options.BIAS_LR_FACTOR,
        bias_names=options.BIAS_NAMES,
        weight_decay_norm=options.WEIGHT_DECAY_NORM,
        weight_decay_bias=options.WEIGHT_DECAY_BIAS,
        no_decay=options.NO_DECAY,
    )
    shared = {"lr": options.BASE_LR, "weight_decay": options.WEIGHT_DECAY}
    optimizer: torch.optim.Optimizer
    if options.OPTIMIZER.upper() == "SGD":
        momentum = {"momentum": options.MOMENTUM, "nesterov": options.NESTEROV}
        optimizer = torch.optim.SGD(groups, foreach=True, **momentum, **shared)
    else:
        adam = {"betas": tuple(options.BETAS), "eps": options.EPS}
        optimizer = torch.optim.AdamW(groups, **adam, **shared)
    clipping = options.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == FULL_MODEL:
        clip_full_model(optimizer, clipping.CLIP_VALUE, clipping.NORM_TYPE)
        return optimizer
    return solver.build.maybe_add_gradient_clipping(cfg, optimizer)


def clip_full_model(optimizer: torch.optim.Optimizer, limit: float, norm_type: float) -> None:
    """Scales all gradients together to a norm of at most `limit` before every step, in place.

    Detectron2's "norm" clips the gradient of each parameter by itself.
    """

    def clip(one: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in one.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, limit, norm_type)

    optimizer.register_step_pre_hook(clip)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    lr_multipliers: Sequence[tuple[str, float]] = (),
    bias_lr_factor: float = 1.0,
    bias_names: Sequence[str] = ("bias",),
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    no_decay: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Detectron2's groups of the parameters that train, for any optimiser.

    In a LazyConfig: `optimizer.params = L(parameter_groups)(base_lr="${..lr}", ...)`.

    Args:
        model: on whose parameters the optimiser will work.
        base_lr: learning rate of what has no multiplier.
        lr_multipliers: (beginning of parameter names, factor of the rate) pairs; of several that
            fit the longest counts.
        bias_lr_factor: another factor, of every bias.
        bias_names: last parts of the names of what is a bias to that factor.
        weight_decay_norm, weight_decay_bias: of norms and of biases; None: the optimiser's.
        no_decay: last parts of the names of parameters that do not decay, e.g. "pos_embed".

    Raises:
        SetupError: a multiplier is of no parameter.
    """
    factors = dict(lr_multipliers)
    _check_prefixes(MULTIPLIERS_KEY, factors, model)
    overrides = {name: {"weight_decay": 0.0} for name in no_decay}
    if weight_decay_bias is not None:
        overrides.setdefault("bias", {"weight_decay": weight_decay_bias})

    def factor_of(name: str) -> float:
        # Detectron2's own factor of biases would take the place of their multiplier
        factor = bias_lr_factor if name.rpartition(".")[2] in bias_names else 1.0
        return factor * lr_factor(name.removeprefix("."), factors)  # ".x": the model's own

    return solver.get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=factor_of,
        overrides=overrides,
    )


def lr_factor(name: str, factors: dict[str, float]) -> float:
    """The factor of the longest key that the parameter's name begins with; 1 where none does."""
    fitting = [prefix for prefix in factors if name.startswith(prefix)]
    return factors[max(fitting, key=len)] if fitting else 1.0


def freeze(model: nn.Module, prefixes: Sequence[str], key: str = FREEZE_KEY) -> None:
    """Parameters whose names begin with one of these train no more, in place.

    Batch norms below keep their statistics, in training, too: they become Detectron2's
    `FrozenBatchNorm2d`, or timm's where they include an activation. Names in the state dict stay.

    Args:
        model: is changed.
        prefixes: beginnings of the names of parameters.
        key: of the prefixes in the config, for messages.

    Raises:
        SetupError: no parameter's name begins so; nothing is left to train; a norm has statistics
            that cannot be kept.
    """
    if not prefixes:
        return
    _check_prefixes(key, prefixes, model)
    beginnings = tuple(prefixes)
    for name, parameter in model.named_parameters():
        if name.startswith(beginnings):
            parameter.requires_grad_(False)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if f"{name}.".startswith(beginnings) and isinstance(module, _NormBase):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _frozen_norm(name, module, key))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SetupError([f"{key} {list(prefixes)}: no parameter is left to train"])


def _frozen_norm(name: str, norm: _NormBase, key: str) -> nn.Module:
    """A norm with the same statistics, for good; one that has none stays as it is."""
    if norm.running_mean is None:
        return norm
    if isinstance(norm, (BatchNormAct2d, SyncBatchNormAct)):
        return freeze_batch_norm_2d(norm)
    if type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm):
        return FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    raise SetupError(
        [
            f"{key}: {name} is a {type(norm).__name__}, whose statistics would go on "
            "changing; BatchNorm2d and SyncBatchNorm can be frozen: choose another norm, or freeze "
            "the layers beside it alone"
        ]
    )


def _check_prefixes(key: str, prefixes: Iterable[str], model: nn.Module) -> None:
    names = [name for name, _ in model.named_parameters()]
    problems = [
        f"{key}: no parameter's name begins with '{prefix}'{_near(prefix, names)}"
        for prefix in prefixes
        if not any(name.startswith(prefix) for name in names)
    ]
    if problems:
        raise SetupError(problems)


def _near(prefix: str, names: Iterable[str]) -> str:
    """The model's modules whose names are most like it."""
    modules = {name[: k + 1] for name in names for k, one in enumerate(name) if one == "."}
    near = difflib.get_close_matches(prefix, sorted(modules), n=3)
    near = near or sorted({name.partition(".")[0] + "." for name in names})
    return f"; there are {', '.join(near)}"


def optimizer_problems(cfg: CfgNode) -> Iterable[str]:
    """Values that cannot be meant; which parameters there are is known once the model is built."""
    options = cfg.SOLVER
    if options.OPTIMIZER.upper() not in OPTIMIZERS:
        yield f"SOLVER.OPTIMIZER: '{options.OPTIMIZER}' is neither SGD nor ADAMW"
    if options.CLIP_GRADIENTS.ENABLED and options.CLIP_GRADIENTS.CLIP_TYPE not in CLIP_TYPES:
        yield (
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: '{options.CLIP_GRADIENTS.CLIP_TYPE}' is not one of "
            f"{', '.join(CLIP_TYPES)}"
        )
    if not all(_is_multiplier(one) for one in options.LR_MULTIPLIERS):
        yield (
            f"{MULTIPLIERS_KEY}: {list(options.LR_MULTIPLIERS)} are not pairs of the beginning of "
            'parameter names and a factor >= 0, as [["backbone.bottom_up.", 0.3]]'
        )
    betas = options.BETAS
    if len(betas) != 2 or not all(0 <= one < 1 for one in betas) or options.EPS <= 0:
        yield (
            f"SOLVER.BETAS {betas} must be two numbers from 0 to less than 1, SOLVER.EPS "
            f"{options.EPS} positive; the usual ones are (0.9, 0.999) and 1e-8"
        )
    if not 0 <= options.WEIGHT_DECAY_STEPS <= 1:
        yield (
            f"SOLVER.WEIGHT_DECAY_STEPS: {options.WEIGHT_DECAY_STEPS}, expected a part of "
            "SOLVER.STEPS, from 0 (off) to 1"
        )
    for key in ("NO_DECAY", "BIAS_NAMES"):
        yield from name_problems(options[key], f"SOLVER.{key}")
    yield from name_problems(cfg.MODEL.OVD.FREEZE, FREEZE_KEY)
    average = {"enabled": options.EMA.ENABLED, "decay": options.EMA.DECAY}
    yield from decay_problems(average, "SOLVER.EMA.DECAY")


def plateau_problems(cfg: CfgNode) -> Iterable[str]:
    """Of `SOLVER.PLATEAU`, by which evaluations lower the rates and end the training."""
    plateau = cfg.SOLVER.PLATEAU
    if not 0 < plateau.FACTOR <= 1:
        yield f"SOLVER.PLATEAU.FACTOR: {plateau.FACTOR}, expected above 0, at most 1 (off)"
    for key in ("PATIENCE", "STOP", "FLOOR"):
        if plateau[key] < 0:
            yield f"SOLVER.PLATEAU.{key}: {plateau[key]}, expected 0 or more"
    if (plateau.FACTOR != 1 or plateau.STOP) and not cfg.TEST.OVD.BEST_CHECKPOINT:
        yield (
            "SOLVER.PLATEAU goes by the metric of the best checkpoint, but "
            'TEST.OVD.BEST_CHECKPOINT is empty: set it, e.g. to "bbox/AP50_base"'
        )


def name_problems(values: Any, key: str) -> list[str]:
    """Of what should be a list of names of parameters, or of their parts."""
    if not isinstance(values, str) and all(isinstance(one, str) for one in values):
        return []
    return [f'{key}: {values!r} is not a list of names, as ["pos_embed"]']


def decay_problems(average: Mapping[str, Any], key: str) -> list[str]:
    """Of a moving average of the weights.

    Args:
        average: `enabled` and `decay`.
        key: of the decay in the config, for the message.
    """
    decay = average.get("decay")
    if not average.get("enabled") or (isinstance(decay, float) and 0 < decay < 1):
        return []
    return [
        f"{key}: {decay} is not a number between 0 and 1: 1 - 1 / n looks back over about n steps"
    ]


def _is_multiplier(pair: Any) -> bool:
    match pair:
        case [str(), int() | float() as factor]:
            return factor >= 0
    return False
