"""Which detectors take a vocabulary: by their config, and once they are built."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable
from typing import Any, Protocol, cast

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from fvcore.common.registry import Registry
from torch import nn

from ovd_d2.captions import Asked, Caption
from ovd_d2.modeling.meta_arch import OpenVocabularyRCNN
from ovd_d2.structures import ENCODED
from ovd_d2.vocabulary import Vocabulary

_HOLDS_ANOTHER = threading.Lock()  # a model of another project holds the vocabulary of one call


class OpenVocabularyModule(Protocol):
    """A detector, or its ROI heads, whose categories are a vocabulary.

    One that reads nothing but the names of a vocabulary has `reads_names = True`, and takes None
    for no vocabulary. It is evaluated with each data set's own names. One that reads sentences is a
    :class:`CaptionReader` as well.
    """

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    def set_vocabulary(self, vocabulary: Vocabulary | None) -> None: ...


class CaptionReader(Protocol):
    """A detector that can be asked for the phrases of a text."""

    def ask(self, caption: Caption) -> Asked:
        """
        Raises:
            ValueError, SetupError: it cannot look for these phrases.
        """


def takes_vocabulary(cfg: CfgNode) -> bool:
    """Whether the meta-architecture or the ROI heads of a config look for a vocabulary."""
    meta = _registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
    return hasattr(meta, "set_vocabulary") or heads_take_vocabulary(cfg)


def heads_take_vocabulary(cfg: CfgNode) -> bool:
    """Whether the ROI heads of a config do; a detector without any may take one itself."""
    heads = _registered(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME)
    return hasattr(heads, "set_vocabulary")


def takes_image_branch(cfg: CfgNode) -> bool:
    """Whether the teacher on crops can be the image branch of the configured detector."""
    heads = _registered(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME)
    return builds_a(cfg, OpenVocabularyRCNN) and hasattr(heads, "set_image_branch")


def builds_a(cfg: CfgNode, kind: type[nn.Module]) -> bool:
    """Whether the configured meta-architecture is `kind` or inherits from it."""
    meta = _registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
    return isinstance(meta, type) and issubclass(meta, kind)


def open_vocabulary_part(model: nn.Module) -> OpenVocabularyModule | None:
    """What holds a detector's vocabulary: the detector, or its ROI heads in one of another project.

    None for a detector with a fixed list of categories.
    """
    detector = unwrapped(model)
    for part in (detector, getattr(detector, "roi_heads", None)):
        if hasattr(part, "set_vocabulary"):
            return cast(OpenVocabularyModule, part)
    return None


def reads_names(model: nn.Module) -> bool:
    """Whether the names of a vocabulary are all that the detector takes, with no embeddings."""
    return bool(getattr(open_vocabulary_part(model), "reads_names", False))


def caption_reader(model: nn.Module) -> CaptionReader | None:
    """What of a detector reads captions; None for one that knows names alone."""
    part = open_vocabulary_part(model)
    return cast(CaptionReader, part) if hasattr(part, "ask") else None


def detect(
    model: nn.Module, inputs: list[dict[str, Any]], vocabulary: Vocabulary | None = None
) -> list[dict[str, Any]]:
    """What a model in eval mode finds of a vocabulary, whatever it holds; any thread may call it.

    A meta-architecture whose `forward` takes `vocabulary` does not change. In one of another
    project the ROI heads hold the vocabulary for as long as the call takes: such calls wait for one
    another. (A call of the model itself does not wait.)

    Args:
        model: a detector.
        inputs: Detectron2's.
        vocabulary: what to look for; None, or a model with a fixed list of categories: what the
            model knows.
    """
    part = open_vocabulary_part(model)
    if part is None or vocabulary is None:
        return model(inputs)
    if "vocabulary" in inspect.signature(unwrapped(model).forward).parameters:
        return model(inputs, vocabulary=vocabulary)
    with _HOLDS_ANOTHER:
        own = part.vocabulary
        part.set_vocabulary(vocabulary)
        try:
            return model(inputs)
        finally:
            if own is not None:
                part.set_vocabulary(own)


def encoded(model: nn.Module, one: dict[str, Any]) -> dict[str, Any]:
    """An input with what a model in eval mode makes of its image before it knows the names.

    `detect` takes it with any vocabulary and finds the same as in the input itself, without
    computing that again. How much it is depends on the model, which has a method `encode` for it
    and reads :data:`ovd_d2.structures.ENCODED`; the input of one that has none stays as it is.

    Args:
        model: a detector.
        one: an input of Detectron2's.
    """
    encode = getattr(unwrapped(model), "encode", None)
    return one if encode is None else {**one, ENCODED: encode(one)}


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside `DistributedDataParallel`, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def architecture_problems(cfg: CfgNode) -> Iterable[str]:
    """A meta-architecture or heads that are not registered, or do not fit each other."""
    names = {
        "MODEL.META_ARCHITECTURE": (META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        "MODEL.ROI_HEADS.NAME": (ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME),
    }
    found = {key: _registered(registry, name) for key, (registry, name) in names.items()}
    for key, (registry, name) in names.items():
        if found[key] is None:
            yield (
                f"{key}: nothing is registered as '{name}': import the module that defines it, or "
                f"name one of {', '.join(sorted(name for name, _ in registry))}"
            )
    heads = found["MODEL.ROI_HEADS.NAME"]
    is_ours = builds_a(cfg, OpenVocabularyRCNN)
    if is_ours and heads is not None and not hasattr(heads, "set_vocabulary"):
        yield (
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} has a fixed list of categories, but "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} needs heads that take a "
            f"vocabulary: name one of {', '.join(open_vocabulary_heads())}"
        )


def open_vocabulary_heads() -> list[str]:
    """The names of all registered ROI heads that take a vocabulary."""
    return sorted(name for name, heads in ROI_HEADS_REGISTRY if hasattr(heads, "set_vocabulary"))


def _registered(registry: Registry, name: str) -> Any:
    return dict(registry).get(name)
