"""From images and words to detections, with any system."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import nn

from ovd_d2.captions import Caption, phrase_names
from ovd_d2.clip.crop_scores import crop_scores
from ovd_d2.clip.loading import configured_teacher, teacher_problems
from ovd_d2.clip.prompts import clean_name
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import EXAMPLE_WEIGHT, prompt_family, vocabulary_of_entries
from ovd_d2.data.any_image import AnyImage, as_bgr, as_rgb
from ovd_d2.data.augmentation import build_augmentations, smallest_resize
from ovd_d2.data.image_faults import ImageError, thin_fault
from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.weights import weights_problems
from ovd_d2.entries import Entry
from ovd_d2.errors import SetupError, brief
from ovd_d2.model_folder import pretrained_config
from ovd_d2.modeling.open_vocabulary import (
    caption_reader,
    detect,
    encoded,
    open_vocabulary_part,
    reads_names,
)
from ovd_d2.prediction import Prediction
from ovd_d2.presence import LEAST_SCORE, Presence, load_presence
from ovd_d2.structures import FULL_MASKS
from ovd_d2.vocabulary import Categories, Vocabulary, configured_vocabulary

logger = logging.getLogger(__name__)

THRESHOLD = 0.25
Name: TypeAlias = str | Sequence[str] | Entry  # a list of words: they mean one thing
Names: TypeAlias = Sequence[Name] | Vocabulary | Caption


@dataclass(frozen=True)
class EncodedImage:
    """An image with what a detector has made of it before it knows the names.

    Attributes:
        input: of the detector, see :func:`ovd_d2.modeling.open_vocabulary.encoded`.
        image_bgr: (H, W, 3) uint8.
    """

    input: dict[str, Any]
    image_bgr: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, pixels."""
        return self.input["height"], self.input["width"]


class Wanted(NamedTuple):
    """What a call looks for.

    Attributes:
        vocabulary: of the detector in this call; None: its inputs say what they are asked for.
        categories: what is reported, the first of the vocabulary or the phrases of a caption.
        inputs: what every input gets beside its image.
    """

    vocabulary: Vocabulary | None
    categories: Categories
    inputs: Mapping[str, Any] = {}


class OpenVocabularyPredictor:
    """Detects, in images, the configured vocabulary or any names given with the call.

    >>> predictor = OpenVocabularyPredictor.from_pretrained("my_model")
    >>> found = predictor("street.jpg", ["red car", ["sofa", "couch"]])
    >>> for one in found.to_pipeline():
    ...     print(one["label"], one["score"], one["box"])

    Calls do not change it, nor the model: threads can share one predictor, each with its own names.
    Images of a list go through the model together where they are padded to the same size: what is
    found in one does not depend on the others. An image that is asked for several lists of names,
    one after the other, can be encoded once (:meth:`encode`).

    A detector that compares text embeddings (ViLD, F-ViT) embeds the names given with the call as
    those of the configured vocabulary were. The teacher is loaded when names are first given; text
    embeddings of the last few lists of names are kept, so that calling again with the same list
    costs nothing. A detector that reads the words itself (GLIP) needs no teacher, and can be asked
    for the phrases of a text, which it reads in their context:

    >>> found = predictor("street.jpg", Caption("a man on a red bicycle", [(2, 5), (11, 22)]))

    Scores of the former are shares among names, and few names alone would share out every object in
    the image. So the configured vocabulary competes with the names given: its names are scored
    beside them and left out of the result, save those that say part of a given name or more than it
    ("anchor" does not compete with "red anchor"). `distractors=False` switches this off.

    Attributes:
        cfg: the config.
        model: the detector, in eval mode.
        vocabulary: the configured one; None where there is none.
        categories: of it; None where there is none.
        presence: the calibration of tools/calibrate_presence.py; None where there is none. Where it
            was fitted with crops, the teacher sees one box of each name that is found.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        model: nn.Module | None = None,
        teacher: CLIPTeacher | None = None,
        distractors: bool = True,
        cached_vocabularies: int = 8,
        presence: Presence | None = None,
        batch_size: int = 8,
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
            presence: the calibration; None: the one that lies beside `MODEL.WEIGHTS`, if any.
            batch_size: images that the model sees at once, at most.

        Raises:
            SetupError: the weights, the vocabulary or the calibration are missing or damaged; the
                calibration was fitted with crops, and the detector has no teacher.
        """
        self.cfg = cfg.clone()
        if self.cfg.MODEL.OVD.CLASSIFY_WITH != "detector":
            raise SetupError(
                [
                    f"MODEL.OVD.CLASSIFY_WITH is '{self.cfg.MODEL.OVD.CLASSIFY_WITH}': it serves "
                    "evaluation only (tools/train_net.py --eval-only); set it to 'detector'"
                ]
            )
        self.vocabulary = configured_vocabulary(self.cfg)
        if model is None:
            if problems := weights_problems(cfg.MODEL.WEIGHTS, needed=True):
                raise SetupError(problems)
            model = build_open_vocabulary_model(self.cfg)
            if self.vocabulary is None:  # a checkpoint brings the one it was trained with
                part = open_vocabulary_part(model)
                self.vocabulary = None if part is None else part.vocabulary
        self.model = model.eval()
        self.presence = presence or load_presence(self.cfg.MODEL.WEIGHTS)
        self._check_crops()
        self.batch_size = batch_size
        self._teacher = teacher
        self._distractors = distractors
        self._embedding = threading.Lock()  # one thread at a time loads the teacher and embeds
        self._vocabulary_of = lru_cache(cached_vocabularies)(self._embed)
        self._asked = lru_cache(cached_vocabularies)(self._ask)
        self._competing = lru_cache(cached_vocabularies)(self._with_distractors)
        self._augmentations = T.AugmentationList(build_augmentations(self.cfg, is_train=False))
        self.categories = None if self.vocabulary is None else self.vocabulary.categories

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], weights: str = "", **options: Any
    ) -> OpenVocabularyPredictor:
        """A trained detector by where it is.

        Args:
            source: a folder that tools/export_model.py wrote; "owner/name" of such a one on the
                Hugging Face hub; or a config file.
            weights: a checkpoint, with a config file.
            options: of the constructor.

        Raises:
            SetupError: there is no such model, or a file of it is missing or damaged.
        """
        return cls(pretrained_config(source, weights), **options)

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        names: Names | None = None,
        threshold: float = THRESHOLD,
        channels: str | None = None,
        *,
        least_presence: float = 0.0,
        full_masks: bool = True,
    ) -> list[Prediction]: ...

    @overload
    def __call__(
        self,
        images: AnyImage | EncodedImage,
        names: Names | None = None,
        threshold: float = THRESHOLD,
        channels: str | None = None,
        *,
        least_presence: float = 0.0,
        full_masks: bool = True,
    ) -> Prediction: ...

    def __call__(
        self,
        images: AnyImage | EncodedImage | list[Any] | tuple[Any, ...],
        names: Names | None = None,
        threshold: float = THRESHOLD,
        channels: str | None = None,
        *,
        least_presence: float = 0.0,
        full_masks: bool = True,
    ) -> Prediction | list[Prediction]:
        """
        Args:
            images: one or a list of them, see :func:`ovd_d2.data.any_image.as_bgr`, or of
                :meth:`encode`; of a list those of one padded size go through the model together.
            names: what to look for: words, lists of words that mean one thing (the best of them
                counts), entries with descriptions and example images; or a vocabulary, e.g. of
                :meth:`vocabulary_of`; or a caption, whose phrases are looked for. None: the
                configured vocabulary.
            threshold: detections scored below it are left out.
            channels: "RGB" or "BGR", of arrays and tensors.
            least_presence: names less likely than this to be in an image give nothing there.
            full_masks: `pred_masks` are a bool tensor as large as the image; False: they stay in
                their boxes where the model allows it, which takes a hundredth of the memory.

        Returns:
            A prediction; of a list a list.

        Raises:
            ValueError: an image that is none or so long and thin that resizing leaves no pixel of
                it; names that are blank or equal; spans that are none of the caption's, or a
                caption that is too long for the detector.
            SetupError: the names cannot be looked for: the teacher cannot be had, or is not the
                vocabulary's; the detector has no use for descriptions and examples, or reads no
                captions; presence is asked for and was not calibrated.
        """
        self.check_presence(least_presence, names)
        several = isinstance(images, (list, tuple))
        listed: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        judged = [
            self.judged(found, image, names, channels, least_presence=least_presence)
            for found, image in zip(
                self.detected(listed, names, threshold, channels, full_masks=full_masks),
                listed,
                strict=True,
            )
        ]
        return judged if several else judged[0]

    def detected(
        self,
        images: Sequence[AnyImage | EncodedImage],
        names: Names | None = None,
        threshold: float = THRESHOLD,
        channels: str | None = None,
        *,
        full_masks: bool = True,
    ) -> list[Prediction]:
        """What a call finds in each image, before :meth:`judged`.

        Args:
            images, names, threshold, channels, full_masks: as of a call.

        Raises:
            ValueError, SetupError: as of a call.
        """
        vocabulary, categories, asked = self._wanted(names)
        inputs = [{**self._input(one, channels), FULL_MASKS: full_masks, **asked} for one in images]
        found: list[Prediction | None] = [None] * len(inputs)
        for places in self._batches(inputs):
            with torch.no_grad():
                outputs = detect(self.model, [inputs[k] for k in places], vocabulary)
            for k, output in zip(places, outputs, strict=True):
                found[k] = _as_prediction(output["instances"], categories, threshold)
        return found  # type: ignore[return-value]

    def encode(self, image: AnyImage, channels: str | None = None) -> EncodedImage:
        """An image to be asked for one list of names after another.

        What a detector makes of an image before it knows the names, the features and, of a
        two-stage detector, the proposals, is made once and lies on the model's device: 90 MB for
        800 x 1333 px and a pyramid of 256 channels. Calls find the same as in the image.

        Args:
            image, channels: as of a call.

        Raises:
            ValueError: as of a call.
        """
        image_bgr = as_bgr(image, channels)
        with torch.no_grad():
            return EncodedImage(encoded(self.model, self._input(image_bgr, "BGR")), image_bgr)

    def judged(
        self,
        found: Prediction,
        image: AnyImage | EncodedImage,
        names: Names | None = None,
        channels: str | None = None,
        *,
        least_presence: float = 0.0,
    ) -> Prediction:
        """A prediction with the presence of its names, where that was calibrated.

        It is calibrated with lists of names: phrases of a caption have none.

        Args:
            found: one of :meth:`detected`.
            image, names, channels: as given there.
            least_presence: names with less give nothing.

        Raises:
            SetupError: `least_presence` is above 0, and this detector was not calibrated.
        """
        self.check_presence(least_presence, names)
        if self.presence is None or isinstance(names, Caption):
            return found
        if self.presence.crop_weight:
            found = self._with_crop_scores(found, _pixels(image, channels), names)
        return found.judged(self.presence, least_presence)

    def _with_crop_scores(
        self, found: Prediction, image_bgr: NDArray[np.uint8], names: Names | None
    ) -> Prediction:
        """What the teacher says of the best box of each name; 0 where the score says nothing."""
        vocabulary = self._wanted(names).vocabulary
        assert vocabulary is not None  # captions are not judged
        with self._embedding:
            self._check_teacher(vocabulary)
            teacher = self.teacher
        scores = torch.zeros(len(found.categories))
        classes = (torch.tensor(found.best_scores) > LEAST_SCORE).nonzero()[:, 0]
        scores[classes] = crop_scores(
            np.ascontiguousarray(image_bgr[:, :, ::-1]),
            found.best_boxes[classes],
            classes,
            vocabulary,
            teacher,
        )
        return replace(found, crop_scores=tuple(scores.tolist()))

    def check_presence(self, least_presence: float, names: Names | None = None) -> None:
        """Raises SetupError where presence is asked for (above 0) and was not calibrated."""
        if isinstance(names, Caption) and least_presence > 0:
            raise SetupError(
                [
                    f"a least presence of {least_presence:g} is asked for, but presence is "
                    "calibrated with lists of names, not with captions: give the phrases as names"
                ]
            )
        if self.presence is None and least_presence > 0:
            raise SetupError(
                [
                    "a least presence is asked for, but nothing is known of the presence of names "
                    "with these weights: run tools/calibrate_presence.py first"
                ]
            )

    def _input(self, image: AnyImage | EncodedImage, channels: str | None) -> dict[str, Any]:
        """What Detectron2 takes for an image."""
        if isinstance(image, EncodedImage):
            return image.input
        image_bgr = as_bgr(image, channels)
        height, width = image_bgr.shape[:2]
        if fault := thin_fault(height, width, smallest_resize(self.cfg, is_train=False)):
            raise ImageError("the image", fault)
        return {"image": self.network_image(image_bgr), "height": height, "width": width}

    def _batches(self, inputs: Sequence[dict[str, Any]]) -> Iterator[list[int]]:
        """Places of inputs of one padded size, `batch_size` at most: none is padded for another."""
        divisor = getattr(getattr(self.model, "backbone", None), "size_divisibility", 0) or 1
        groups: dict[tuple[int, int], list[int]] = {}
        for k, one in enumerate(inputs):
            height, width = one["image"].shape[1:]
            groups.setdefault((-(-height // divisor), -(-width // divisor)), []).append(k)
        for places in groups.values():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]

    def categories_of(self, names: Names | None) -> Categories:
        """What a call with these names finds objects of; raises what that call would."""
        return self._wanted(names).categories

    def vocabulary_of(
        self, names: Sequence[Name], *, example_weight: float = EXAMPLE_WEIGHT
    ) -> Vocabulary:
        """Names as this detector takes them, to be looked for again and again, or saved.

        Args:
            names: as of a call.
            example_weight: see :func:`ovd_d2.clip.vocabulary_builder.vocabulary_of_entries`.

        Raises:
            ValueError, SetupError: as of a call.
        """
        entries = _checked_entries(names)
        if open_vocabulary_part(self.model) is None:
            raise SetupError(
                [
                    f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} has a fixed list "
                    "of categories; names need an open-vocabulary detector"
                ]
            )
        return self._vocabulary_of(entries, example_weight)

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
            image_bgr: (H, W, 3) uint8, blue, green, red.
        """
        image = image_bgr[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else image_bgr
        augmented = T.AugInput(np.ascontiguousarray(image))
        self._augmentations(augmented)
        return torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))

    def _wanted(self, names: Names | None) -> Wanted:
        if isinstance(names, Caption):
            return self._asked(names)
        if names is None:
            if self.vocabulary is None:
                raise SetupError(
                    [
                        "no names were given, MODEL.OVD.VOCABULARY is empty, and MODEL.WEIGHTS "
                        "brings no vocabulary: give one of them"
                    ]
                )
            return Wanted(self.vocabulary, self.vocabulary.categories)
        given = names if isinstance(names, Vocabulary) else self.vocabulary_of(names)
        if problem := self._foreign(given):
            raise SetupError([problem])
        return Wanted(self._competing(given), given.categories)

    def _ask(self, caption: Caption) -> Wanted:
        reader = caption_reader(self.model)
        if reader is None:
            raise SetupError(
                [
                    f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} reads no "
                    f"captions: give the phrases of {brief(caption.text)} as a list of names"
                ]
            )
        spans, inputs = reader.ask(caption)
        names, base = phrase_names(caption.text, spans), self._base_names()
        novel = [clean_name(one) not in base for one in names]
        return Wanted(None, Categories(names, novel), inputs)

    def _embed(self, entries: tuple[Entry, ...], example_weight: float) -> Vocabulary:
        base = self._base_names()
        entries = tuple(replace(one, novel=clean_name(one.name) not in base) for one in entries)
        if reads_names(self.model):
            return self._read(entries)
        with self._embedding:
            self._check_teacher(self.vocabulary)
            return vocabulary_of_entries(
                entries,
                self.teacher,
                as_rgb,
                prompts=prompt_family(self.vocabulary, self.cfg.MODEL.OVD.TEACHER.PROMPTS),
                example_weight=example_weight,
            )

    def _read(self, entries: Sequence[Entry]) -> Vocabulary:
        described = [one.name for one in entries if one.descriptions or one.examples]
        if described:
            raise SetupError(
                [
                    f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} reads words: it "
                    f"has no use for the descriptions and example images of '{described[0]}'; give "
                    "names and synonyms alone"
                ]
            )
        categories = Categories([one.name for one in entries], [one.novel for one in entries])
        return Vocabulary.of_names(categories, [one.synonyms for one in entries])

    def _foreign(self, given: Vocabulary) -> str:
        """Why a vocabulary cannot be compared with the detector's; "" where it can."""
        known = self.vocabulary
        if reads_names(self.model) or known is None:
            return ""
        if "" in (given.teacher, known.teacher) or given.teacher == known.teacher:
            return ""
        return (
            f"the vocabulary given was made with {given.teacher}, the detector's with "
            f"{known.teacher}: their embeddings do not compare; make it with that teacher"
        )

    def _with_distractors(self, given: Vocabulary) -> Vocabulary:
        """The names given, then what competes with them."""
        others = self._distractors_for(given.words)
        if not others or self.vocabulary is None:
            return given
        return Vocabulary(
            [*given.names, *(f"{self.vocabulary.names[k]} (distractor)" for k in others)],
            torch.cat([given.embeddings, self.vocabulary.embeddings[others]]),
            torch.cat([given.novel, self.vocabulary.novel[others]]),
            teacher=given.teacher,
            prompts=given.prompts,
            background=given.background,
            synonyms=[*given.synonyms, *([] for _ in others)],
            synonym_embeddings=given.synonym_embeddings,
        )

    def _check_teacher(self, vocabulary: Vocabulary | None) -> None:
        if problems := teacher_problems(self.teacher, vocabulary, "the vocabulary"):
            raise SetupError(problems)

    def _check_crops(self) -> None:
        if self.presence is not None and self.presence.crop_weight and reads_names(self.model):
            raise SetupError(
                [
                    f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} reads words and "
                    "has no teacher that could look at crops: calibrate without --crops"
                ]
            )

    def _base_names(self) -> set[str]:
        if self.categories is None:
            return set()
        flags = zip(self.categories.names, self.categories.novel, strict=True)
        return {clean_name(name) for name, novel in flags if not novel}

    def _distractors_for(self, words: Sequence[str]) -> list[int]:
        """Indices of configured names that share out nothing with a given name's words."""
        if self.vocabulary is None or not self._distractors or reads_names(self.model):
            return []
        given = [set(clean_name(word).split()) for word in words]
        configured = [set(clean_name(name).split()) for name in self.vocabulary.names]
        return [
            k
            for k, own in enumerate(configured)
            if not any(own <= wanted or wanted <= own for wanted in given)
        ]


def _pixels(image: AnyImage | EncodedImage, channels: str | None) -> NDArray[np.uint8]:
    return image.image_bgr if isinstance(image, EncodedImage) else as_bgr(image, channels)


def _as_prediction(instances: Instances, categories: Categories, threshold: float) -> Prediction:
    """Of what a model has found, the given categories, which are the first."""
    found = instances.to("cpu")
    found = found[found.pred_classes < len(categories)]
    order = found.scores.argsort(descending=True, stable=True)
    classes, first = np.unique(found.pred_classes[order].numpy(), return_index=True)
    best_scores, best_boxes = torch.zeros(len(categories)), torch.zeros(len(categories), 4)
    best_scores[classes] = found.scores[order[first]].float()
    best_boxes[classes] = found.pred_boxes.tensor[order[first]].float()
    best = tuple(best_scores.tolist())
    return Prediction(found, categories, best, best_boxes).from_score(threshold)


def _checked_entries(names: Sequence[Name]) -> tuple[Entry, ...]:
    if isinstance(names, (str, Entry, Caption)):
        raise ValueError(f"names must be a list, got the one {names!r}")
    if not names:
        raise ValueError("names is empty: give at least one, or None for the configured vocabulary")
    entries = tuple(_as_entry(name) for name in names)
    words = [clean_name(word) for one in entries for word in one.words]
    if not all(words):
        raise ValueError(f"names must not be blank: {brief(list(names))}")
    if len(set(words)) < len(words):
        repeated = sorted(word for word, count in Counter(words).items() if count > 1)
        raise ValueError(f"names mean the same: {brief(repeated)}; give each once")
    return entries


def _as_entry(name: Name) -> Entry:
    if isinstance(name, Entry):
        return name
    words = (name,) if isinstance(name, str) or not isinstance(name, Sequence) else tuple(name)
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"a name is a text or a list of texts, got {brief(name)}")
    return Entry(words[0], synonyms=words[1:])
