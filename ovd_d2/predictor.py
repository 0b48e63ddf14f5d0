"""From one image and a list of words to detections."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import nn

from ovd_d2.clip.loading import configured_teacher, teacher_problems
from ovd_d2.clip.prompts import clean_name
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import build_vocabulary, prompt_family
from ovd_d2.data.augmentation import Resize, build_augmentations, smallest_resize
from ovd_d2.data.image_faults import ImageError, thin_fault
from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.modeling.open_vocabulary import detect, open_vocabulary_part, reads_names
from ovd_d2.vocabulary import Categories, Vocabulary, configured_vocabulary

logger = logging.getLogger(__name__)


class Found(TypedDict):
    """What a call has found.

    Attributes:
        instances: Detectron2's, with `pred_boxes` (XYXY, pixels of the image), `scores`,
            `pred_classes` and `pred_masks` where the model has masks.
        categories: what `pred_classes` index: the names of the call; novel is what the detector was
            trained without boxes of.
    """

    instances: Instances
    categories: Categories


class OpenVocabularyPredictor:
    """Detects, in one BGR image, the configured vocabulary or any names given with the call.

    >>> predictor = OpenVocabularyPredictor(cfg)
    >>> found = predictor(cv2.imread("street.jpg"), ["red car", "unicycle"])
    >>> [found["categories"].names[k] for k in found["instances"].pred_classes]

    Calls do not change it, nor the model: threads can share one predictor, each with its own names.

    Names given with the call are embedded with the prompts of the configured vocabulary. The
    teacher is loaded when names are first given; text embeddings of the last few lists of
    names are kept, so that calling again with the same list costs nothing.

    Scores are shares among names, and few names alone would share out every object in the image.
    So the configured vocabulary competes with the names given: its names are scored beside them
    and left out of the result, save those that say part of a given name or more than it
    ("anchor" does not compete with "red anchor"). `distractors=False` switches this off. A detector
    that reads nothing but names scores each for itself, and needs neither these nor a teacher.

    Attributes:
        model: the detector, in eval mode.
        categories: of the configured vocabulary; None where there is none.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        model: nn.Module | None = None,
        teacher: CLIPTeacher | None = None,
        distractors: bool = True,
        cached_vocabularies: int = 8,
    ) -> None:
        """
        Args:
            cfg: a complete config; `MODEL.WEIGHTS`, `MODEL.OVD.VOCABULARY` (the names it was
                trained with; empty: those that its checkpoint holds) and `MODEL.OVD.TEACHER`
                matter most.
            model: use this detector instead of building the config's.
            teacher: use this teacher instead of the config's.
            distractors: let the configured vocabulary compete with the names given.
            cached_vocabularies: lists of names whose embeddings are kept.

        Raises:
            SetupError: the weights or the vocabulary are missing or damaged.
        """
        self.cfg = cfg.clone()
        if self.cfg.MODEL.OVD.CLASSIFY_WITH != "detector":
            raise SetupError(
                [
                    f"MODEL.OVD.CLASSIFY_WITH is '{self.cfg.MODEL.OVD.CLASSIFY_WITH}': it serves "
                    "evaluation only (tools/train_net.py --eval-only); set it to 'detector'"
                ]
            )
        self._configured = configured_vocabulary(self.cfg)
        if model is None:
            if problems := weights_problems(cfg.MODEL.WEIGHTS, needed=True):
                raise SetupError(problems)
            model = build_open_vocabulary_model(self.cfg)
            if self._configured is None:  # a checkpoint brings the one it was trained with
                part = open_vocabulary_part(model)
                self._configured = None if part is None else part.vocabulary
        self.model = model.eval()
        self._teacher = teacher
        self._distractors = distractors
        self._embedding = threading.Lock()  # one thread at a time loads the teacher and embeds
        self._vocabulary_of = lru_cache(cached_vocabularies)(self._embed)
        self._augmentations = T.AugmentationList(build_augmentations(self.cfg, is_train=False))
        self.categories = None if self._configured is None else self._configured.categories

    def __call__(self, image_bgr: np.ndarray, names: Sequence[str] | None = None) -> Found:
        """
        Args:
            image_bgr: (H, W, 3) uint8, channels blue, green, red, as OpenCV reads.
            names: what to look for, in words; None for the configured vocabulary.

        Raises:
            ValueError: not such an image, one that is so long and thin that resizing leaves no
                pixel of it, or names that are blank or equal.
            SetupError: names are given and the teacher cannot be had, or is not the vocabulary's.
        """
        _check_image(image_bgr, smallest_resize(self.cfg, is_train=False))
        vocabulary, categories = self._wanted(names)
        height, width = image_bgr.shape[:2]
        one = {"image": self.network_image(image_bgr), "height": height, "width": width}
        with torch.no_grad():
            output = detect(self.model, [one], vocabulary)[0]
        instances = output["instances"]
        return {
            "instances": instances[instances.pred_classes < len(categories)],
            "categories": categories,
        }

    @property
    def teacher(self) -> CLIPTeacher:
        """The config's teacher, loaded on first use."""
        if self._teacher is None:
            wanted = self.cfg.MODEL.OVD.TEACHER
            logger.info("Loading the teacher %s (%s)", wanted.ARCHITECTURE, wanted.PRETRAINED)
            self._teacher = configured_teacher(self.cfg, device=self.cfg.MODEL.DEVICE)
        return self._teacher

    def network_image(self, image_bgr: np.ndarray) -> torch.Tensor:
        """What the detector sees of an image: resized, (3, H, W), channels in the config's order.

        Args:
            image_bgr: see :meth:`__call__`.
        """
        image = image_bgr[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else image_bgr
        augmented = T.AugInput(np.ascontiguousarray(image))
        self._augmentations(augmented)
        return torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))

    def _wanted(self, names: Sequence[str] | None) -> tuple[Vocabulary, Categories]:
        """What to look for, and what of it to report: the first categories."""
        if names is not None:
            given = _checked_names(names)
            vocabulary, count = self._vocabulary_of(given), len(given)
        elif self._configured is not None:
            vocabulary, count = self._configured, len(self._configured)
        else:
            raise SetupError(
                [
                    "no names were given, MODEL.OVD.VOCABULARY is empty, and MODEL.WEIGHTS "
                    "brings no vocabulary: give one of them"
                ]
            )
        return vocabulary, Categories(vocabulary.names[:count], vocabulary.novel[:count].tolist())

    def _embed(self, names: tuple[str, ...]) -> Vocabulary:
        """The names given, then their distractors."""
        if open_vocabulary_part(self.model) is None:
            raise SetupError(
                [
                    f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} has a fixed list "
                    "of categories; names need an open-vocabulary detector"
                ]
            )
        base = self._base_names()
        categories = Categories(list(names), [clean_name(name) not in base for name in names])
        if reads_names(self.model):  # which do not share out an object among them
            return Vocabulary.of_names(categories)
        with self._embedding:
            self._check_teacher()
            prompts = prompt_family(self._configured, self.cfg.MODEL.OVD.TEACHER.PROMPTS)
            given = build_vocabulary(categories, self.teacher, prompts=prompts)
        others = self._distractors_for(names)
        return self._with_distractors(given, others) if others else given

    def _with_distractors(self, given: Vocabulary, others: list[int]) -> Vocabulary:
        assert self._configured is not None  # it is where distractors come from
        return Vocabulary(
            [*given.names, *(f"{self._configured.names[k]} (distractor)" for k in others)],
            torch.cat([given.embeddings, self._configured.embeddings[others]]),
            torch.cat([given.novel, self._configured.novel[others]]),
            teacher=given.teacher,
            prompts=given.prompts,
            background=given.background,
        )

    def _check_teacher(self) -> None:
        if problems := teacher_problems(self.teacher, self._configured, "the vocabulary"):
            raise SetupError(problems)

    def _base_names(self) -> set[str]:
        if self.categories is None:
            return set()
        flags = zip(self.categories.names, self.categories.novel, strict=True)
        return {clean_name(name) for name, novel in flags if not novel}

    def _distractors_for(self, names: Sequence[str]) -> list[int]:
        """Indices of configured names that share out nothing with a given name's words."""
        if self._configured is None or not self._distractors:
            return []
        given = [set(clean_name(name).split()) for name in names]
        configured = [set(clean_name(name).split()) for name in self._configured.names]
        return [
            k
            for k, words in enumerate(configured)
            if not any(words <= wanted or wanted <= words for wanted in given)
        ]


def _check_image(image: np.ndarray, resize: Resize | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"image must be (height, width, 3) uint8 in BGR order, got {image.shape} {image.dtype}"
        )
    if fault := thin_fault(image.shape[0], image.shape[1], resize):
        raise ImageError("the image", fault)


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ValueError(f"names must be a list of strings, got the one string {names!r}")
    if not names:
        raise ValueError("names is empty: give at least one, or None for the configured vocabulary")
    words = [clean_name(name) for name in names]
    if not all(words):
        raise ValueError(f"names must not be blank: {list(names)}")
    repeated = sorted({word for word in words if words.count(word) > 1})
    if repeated:
        raise ValueError(f"names mean the same: {repeated}; give each once")
    return tuple(names)
