"""Captions and tokens on their way through the mapper, with the tokens of every box."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from detectron2.structures import Instances

from ovd_d2.data.passengers import DATA_SET, MappedImage, Passenger
from ovd_d2.projects.glip.grounding import CAPTION, EVALUATED, SPANS, spans_of, spans_problems
from ovd_d2.projects.glip.negative_captions import NegativeCaptions
from ovd_d2.projects.glip.prompts import (
    Prompt,
    Tokenizer,
    token_targets,
    truncated,
)
from ovd_d2.projects.glip.prompts.spans import Span
from ovd_d2.projects.glip.questions import TOKENS, question_inputs

TOKEN_TARGETS = "gt_token_targets"  # field of a training input's `instances`


class NamesToPrompt(Protocol):
    """See :class:`ovd_d2.projects.glip.prompts.detection.DetectionPrompts`."""

    def __call__(
        self,
        positives: Collection[int],
        generator: np.random.Generator,
        withheld: Collection[int] = (),
    ) -> Prompt: ...


class DetectionSet(NamedTuple):
    """How the images of a detection set are asked for its categories.

    Attributes:
        prompts: makes the prompts.
        contiguous: the data set's id of a category -> its contiguous one.
    """

    prompts: NamesToPrompt
    contiguous: Mapping[int, int]


def drawn(image: MappedImage) -> np.random.Generator:
    """Other random numbers every time: NumPy's generator, which the training loader seeds per
    draw, begins them."""
    return np.random.default_rng(np.random.randint(0, 2**31, size=4))


def fixed(image: MappedImage) -> np.random.Generator:
    """The same random numbers for an image every time, in any process."""
    return np.random.default_rng(zlib.crc32(str(image.record["image_id"]).encode()))


class TrainingPrompts(Passenger):
    """Gives a training image its caption: its own, or names of its data set's categories.

    Adds `caption` and `tokens`, (L,) int64 with [CLS] and [SEP], at most 256, to the input, and
    `gt_token_targets`, (M, L) bool, to its `instances`. Boxes that the caption does not speak of,
    or not before it is cut off, are left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        detection_sets: Mapping[str, DetectionSet],
        negatives: Mapping[str, NegativeCaptions] | None = None,
        *,
        generator_of: Callable[[MappedImage], np.random.Generator] = drawn,
    ) -> None:
        """
        Args:
            tokenizer: of the captions.
            detection_sets: by name, those whose images are asked for names.
            negatives: by name of a data set, captions of other images that are put beside its own.
            generator_of: of the random numbers that an image's prompt is made with.
        """
        self._tokenizer = tokenizer
        self._sets = dict(detection_sets)
        self._negatives = dict(negatives or {})
        self._generator_of = generator_of

    def __call__(self, image: MappedImage) -> None:
        """
        Raises:
            ValueError: spans do not fit the caption, or the data set is unknown.
        """
        generator = self._generator_of(image)
        # by its set, since images of a detection set may have captions, but no spans
        one = self._sets.get(image.record.get(DATA_SET, ""))
        if one is None:
            caption, spans = self._own_caption(image, generator)
        else:
            caption, spans = _names(image, one, generator)
        encoding = truncated(self._tokenizer.encode(caption))
        targets = token_targets(spans, encoding.offsets)
        told = targets.any(dim=1)
        instances: Instances = image.record["instances"][told]
        instances.set(TOKEN_TARGETS, targets[told])
        image.record["instances"] = instances
        image.record[CAPTION] = caption
        image.record[TOKENS] = torch.tensor(encoding.ids, dtype=torch.int64)

    def _own_caption(
        self, image: MappedImage, generator: np.random.Generator
    ) -> tuple[str, list[Sequence[Span]]]:
        record = image.record
        if CAPTION not in record:
            raise ValueError(
                f"{record.get('file_name')}: no caption, and its data set "
                f"{record.get(DATA_SET)!r} is not one of {sorted(self._sets)}: the names to ask "
                "for are not known"
            )
        caption: str = record[CAPTION]
        if image.objects is None:
            raise ValueError(
                f"{record.get('file_name')}: the mapper does not say which annotations its boxes "
                "are of: take ovd_d2.data.mapper.OpenVocabularyDatasetMapper"
            )
        for one in image.objects:
            for problem in spans_problems(caption, one.get(SPANS)):
                raise ValueError(
                    f"{record.get('file_name')} (image {record.get('image_id')}): {SPANS} {problem}"
                )
        spans: list[Sequence[Span]] = [spans_of(one) for one in image.objects]
        if others := self._negatives.get(record.get(DATA_SET, "")):
            phrases = {caption[first:end] for one in spans for first, end in one}
            caption, start = others.beside(caption, phrases, generator)
            spans = [[(first + start, end + start) for first, end in one] for one in spans]
        return caption, spans


def _names(
    image: MappedImage, asked: DetectionSet, generator: np.random.Generator
) -> tuple[str, list[Sequence[Span]]]:
    """A prompt of names, and the spans of each box in it."""
    record = image.record
    classes = record["instances"].gt_classes.tolist()
    partly = record.get("not_exhaustive_category_ids") or ()
    withheld = {asked.contiguous[k] for k in partly if k in asked.contiguous}
    prompt = asked.prompts(set(classes), generator, withheld)
    spans = dict(zip(prompt.labels, prompt.spans, strict=True))
    return prompt.caption, [spans.get(label, ()) for label in classes]


class PhrasesToFind(Passenger):
    """What an image of a grounding set is asked for at test time: the phrases of its caption.

    Adds `tokens` (L,) int64 and `positive_map` (C, L) float32 of the C phrases that
    `tokens_positive_eval` names.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, image: MappedImage) -> None:
        add_question(image.record, self._tokenizer)


def add_question(record: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Asks an image for the phrases of its caption; see :class:`PhrasesToFind`.

    Raises:
        ValueError: the record has no caption, or spans that do not fit it.
    """
    caption = record.get(CAPTION)
    if not isinstance(caption, str) or EVALUATED not in record:
        raise ValueError(
            f"{record.get('file_name')}: no '{CAPTION}' with '{EVALUATED}': it is not of a "
            "grounding set"
        )
    phrases = record[EVALUATED]
    for one in phrases:
        for problem in spans_problems(caption, one):
            raise ValueError(f"{record.get('file_name')}: {EVALUATED} {problem}")
    record.update(question_inputs(phrases, truncated(tokenizer.encode(caption))))
