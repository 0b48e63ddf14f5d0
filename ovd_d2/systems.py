"""The plug of a system: what it adds to the shared code, which knows none of them by name.

A system is a way to train and score an open-vocabulary detector (ViLD). It brings a config node,
its checks, what rides through the mapper with the image, and what happens to the training loader.
To add one: write a module with a :class:`System` called `SYSTEM` and name it in `SYSTEM_MODULES`,
or, from outside this package, call :func:`register_system`. See projects/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig
from torch import nn

if TYPE_CHECKING:
    from ovd_d2.data.passengers import Passenger
    from ovd_d2.data.registration import DataSet
    from ovd_d2.export.network import Network

# One line per system. Imported when first asked for: `import ovd_d2` stays quick.
SYSTEM_MODULES = (
    "ovd_d2.vild.system",
    "ovd_d2.projects.clipself.system",
    "ovd_d2.projects.clipself.fvit.system",
    "ovd_d2.projects.clipself.segmentation.system",
    "ovd_d2.projects.glip.system",
)

Batches = Iterable[list[dict[str, Any]]]
# (cfg, data set, output folder) -> evaluator
EvaluatorFactory = Callable[[CfgNode, str, str], DatasetEvaluator]
# Keys that nothing reads under a config, and why.
IdleKeys = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class SetupContext:
    """What the shared checks found, for those of a system.

    Attributes:
        training: False for an evaluation.
        embedding_dim: width of the teacher's embeddings.
        teacher: fingerprint of the one that embedded the vocabulary; None: not known.
        training_images: Detectron2 dicts of every training image; empty in an evaluation.
        notices: gets what a system's checks find odd, although it can be meant.
    """

    training: bool
    embedding_dim: int
    teacher: str | None = None
    training_images: Sequence[dict[str, Any]] = ()
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class System:
    """What one system adds; each function gets the complete config.

    Attributes:
        name: for messages, e.g. "ViLD".
        node: its keys are below this one, e.g. "MODEL.VILD".
        is_configured: whether a config is one of this system.
        detects: False for a system that trains no detector: number and order of categories are not
            compared with the config's.
        free_categories: True for a system that learns from texts and looks for names alone, with no
            embeddings of a teacher: every data set may have categories of its own, and no
            vocabulary is needed. Its detector has `reads_names`
            (:class:`ovd_d2.modeling.open_vocabulary.OpenVocabularyModule`).
        add_config: adds the node with its defaults.
        renamed_keys: old key -> the key that took its place, for configs of older versions.
        key_problems: keys whose values cannot be meant; no file is opened.
        problems: everything else that a run of the system needs, e.g. its stores.
        lazy_problems: the same of a LazyConfig and its mapper's passengers; nothing where the
            config is not one of this system.
        idle_keys: keys that the config sets and nothing reads.
        keys_of_parts: keys of its node that its backbone and the like read in a config of another
            system.
        passengers: what the training mapper carries along with every image.
        test_passengers: the same at test time, of a data set by its name.
        validation_passengers: the same where the training losses over a test set are computed
            (`TEST.OVD.VALIDATION_LOSS`): what an image carries must not change between two times.
        file_keys: keys of files or folders that its detector needs beside its weights.
        evaluators: evaluator_type of a data set's metadata -> what makes its evaluator, for types
            that are not detection.
        evaluation_settings: title -> text of what its numbers on a detection set depend on beside
            protocol and engine; stands with the table and in `results.json`.
        metrics: evaluator_type -> names of numbers of such an evaluator that can choose the best
            checkpoint, "task/number".
        data_sets: what it adds to the data sets of this package; each is registered when it is
            first used.
        wrap_loader: changes the batches on their way from the loader to the model, in the
            training process.
        hooks: what runs in a training beside the shared hooks, before those that write checkpoints
            and evaluate; is given the config and the model.
        network: what of its models is exported; None: they are :class:`OpenVocabularyRCNN`.
        showcase: module whose `SHOWCASE` (:class:`ovd_d2.pictograms.showcase.Showcase`) is what
            `make demo` and the tables of results show of it; imported when they are made. Empty:
            nothing.
        golden: module whose `PARTS` (:class:`ovd_d2.golden.Part`) hold it against numbers of its
            public code, for `tools/check_golden.py`. Empty: nothing.
    """

    name: str
    node: str
    is_configured: Callable[[CfgNode], bool]
    add_config: Callable[[CfgNode], None]
    detects: bool = True
    free_categories: bool = False
    renamed_keys: Mapping[str, str] = field(default_factory=dict)
    key_problems: Callable[[CfgNode], Iterable[str]] = lambda *_: ()
    problems: Callable[[CfgNode, SetupContext], Iterable[str]] = lambda *_: ()
    lazy_problems: Callable[[DictConfig, Sequence[Passenger]], Iterable[str]] = lambda *_: ()
    idle_keys: Callable[[CfgNode], Iterable[IdleKeys]] = lambda *_: ()
    keys_of_parts: Callable[[CfgNode], Sequence[str]] = lambda *_: ()
    passengers: Callable[[CfgNode], Sequence[Passenger]] = lambda *_: ()
    test_passengers: Callable[[CfgNode, str], Sequence[Passenger]] = lambda *_: ()
    validation_passengers: Callable[[CfgNode, str], Sequence[Passenger]] = lambda *_: ()
    file_keys: tuple[str, ...] = ()
    evaluators: Mapping[str, EvaluatorFactory] = field(default_factory=dict)
    evaluation_settings: Callable[[CfgNode, str], Mapping[str, str]] = lambda *_: {}
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    data_sets: Callable[[], Iterable[DataSet]] = lambda: ()
    wrap_loader: Callable[[CfgNode, Batches], Batches] = lambda cfg, loader: loader
    hooks: Callable[[CfgNode, nn.Module], Sequence[HookBase]] = lambda *_: ()
    network: Callable[[nn.Module], Network] | None = None
    showcase: str = ""
    golden: str = ""


_registered: dict[str, System] = {}


def register_system(system: System) -> None:
    """Adds a system of another package, before its configs are read.

    Raises:
        ValueError: another system has its name.
    """
    if system.name in {one.name for one in systems()}:
        raise ValueError(f"a system called '{system.name}' is registered already: rename one")
    _registered[system.name] = system


def systems() -> list[System]:
    """All systems, those of this package first."""
    own = [import_module(module).SYSTEM for module in SYSTEM_MODULES]
    return [*own, *_registered.values()]


def system_of(cfg: CfgNode) -> System | None:
    """The system that a config is of; None for a detector that is of none, e.g. Mask R-CNN.

    Raises:
        ValueError: two systems take it for theirs.
    """
    found = [system for system in systems() if system.is_configured(cfg)]
    if len(found) > 1:
        names = " and ".join(system.name for system in found)
        raise ValueError(f"this config is one of {names}: set the keys of one of them alone")
    return found[0] if found else None
