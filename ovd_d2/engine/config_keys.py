"""Mistakes in the keys of a config: unknown ones, and ones that nothing will read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.point_rend import add_pointrend_config

from ovd_d2.config import add_ovd_config, renamed_keys
from ovd_d2.modeling.backbone import TIMM_BACKBONES
from ovd_d2.modeling.meta_arch import BatchInvariantRCNN, OpenVocabularyRCNN
from ovd_d2.modeling.open_vocabulary import builds_a, takes_vocabulary
from ovd_d2.systems import IdleKeys, System, system_of, systems

_MOST_KEYS = 10_000  # aliases of aliases could make millions of a short yaml file


def default_config() -> CfgNode:
    """The keys of Detectron2, of its PointRend project and of this package, with their defaults."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_ovd_config(cfg)
    return cfg


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`("MODEL.VILD.VARIANT", "vild")` ... for every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def unknown_key_problems(config_file: str, opts: Sequence[str]) -> list[str]:
    """One message for each key of the file (its bases included) or options that does not exist.

    Args:
        config_file: a yaml file that can be read.
        opts: `KEY VALUE` pairs, flat.
    """
    known = {key for key, _ in flatten(default_config())}
    groups = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    tree = {k: v for k, v in CfgNode.load_yaml_with_base(config_file).items() if k != "_BASE_"}
    problems = []
    keys_of_file = [key for key, _ in islice(flatten(tree), _MOST_KEYS)]
    if len(keys_of_file) == _MOST_KEYS:
        return [f"{config_file}: it has {_MOST_KEYS} keys or more, there are {len(known)}"]
    for source, keys in ((config_file, keys_of_file), ("options", opts[::2])):
        for key in keys:
            if key in known or key in groups or any(key.startswith(f"{k}.") for k in known):
                continue  # below a leaf: Detectron2 says what is wrong with the value
            if new := _new_name(key):
                problems.append(f"{source}: the key {key} was renamed to {new}")
                continue
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{source}: there is no key {key}{hint}")
    if len(opts) % 2:
        problems.append(f"options: '{opts[-1]}' has no value; they are KEY VALUE pairs")
    return problems


def _new_name(key: str) -> str | None:
    """What a key of an older version is called now; None: there was no such key."""
    for old, new in renamed_keys().items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def idle_key_notices(cfg: CfgNode) -> list[str]:
    """Keys that differ from their default and that the configured system does not read."""
    defaults = dict(flatten(default_config()))
    values = dict(flatten(cfg))
    notices = []
    for keys, reason in _idle(cfg):
        changed = [key for key in keys if values[key] != defaults[key]]
        notices += [f"{key} {values[key]!r} has no effect: {reason}" for key in changed]
    return notices


def _idle(cfg: CfgNode) -> Iterable[IdleKeys]:
    """Groups of keys nobody reads under this config, and why."""
    if takes_vocabulary(cfg) or system_of(cfg) is not None:
        for system in systems():
            yield from system.idle_keys(cfg) if system.is_configured(cfg) else _node(cfg, system)
    yield from _of_meta_architectures(cfg)
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("LevelMeanRPN", "ViLDRPN"):
        yield (
            ("MODEL.RPN.BBOX_REG_LOSS_TYPE",),
            f"MODEL.PROPOSAL_GENERATOR.NAME {cfg.MODEL.PROPOSAL_GENERATOR.NAME} has a box loss of "
            "its own",
        )
    if cfg.SOLVER.OPTIMIZER.upper() != "ADAMW":
        yield ("SOLVER.BETAS", "SOLVER.EPS"), f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER}"
    if not cfg.SOLVER.EMA.ENABLED:
        yield ("SOLVER.EMA.DECAY",), "SOLVER.EMA.ENABLED is False"
    if cfg.MODEL.BACKBONE.NAME not in TIMM_BACKBONES:
        yield (
            ("MODEL.OVD.TIMM_ARCHITECTURE",),
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}",
        )
    if not cfg.INPUT.LSJ.ENABLED:
        keys = ("MIN_SCALE", "MAX_SCALE", "SIZE", "FLIP_FIRST", "PAD")
        yield tuple(f"INPUT.LSJ.{key}" for key in keys), "INPUT.LSJ.ENABLED is False"


def _of_meta_architectures(cfg: CfgNode) -> Iterable[IdleKeys]:
    """What this package's meta-architectures read, where another one is configured."""
    norm = tuple(f"MODEL.OVD.BATCH_NORM.{key}" for key in cfg.MODEL.OVD.BATCH_NORM)
    readers = {
        OpenVocabularyRCNN: ("MODEL.OVD.COMPILE_BACKBONE",),
        BatchInvariantRCNN: norm,
    }
    for kind, keys in readers.items():
        if not builds_a(cfg, kind):
            yield keys, f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not read it"


def _node(cfg: CfgNode, system: System) -> Iterable[IdleKeys]:
    """All keys of a system that the config is not of."""
    read = system.keys_of_parts(cfg)
    below = (key for key, _ in flatten(cfg) if key.startswith(f"{system.node}."))
    yield tuple(key for key in below if key not in read), f"this is no config of {system.name}"
