"""Recall of the boxes of phrases: Flickr30k Entities (Plummer et al., arXiv 1505.04870).

A phrase is found among the first k boxes where one of them has an IoU of at least 0.5 with a box of
the phrase. "any box": with any of them; "merged boxes": with the box around all of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from numpy.typing import NDArray
from tabulate import tabulate

from ovd_d2.data.mapper import objects_of
from ovd_d2.errors import SetupError
from ovd_d2.evaluation.tables import heading
from ovd_d2.files import atomic_write_json
from ovd_d2.projects.glip.evaluation.settings import captions_shown
from ovd_d2.projects.glip.grounding import CAPTION, EVALUATED, first_problems, spans_of

logger = logging.getLogger(__name__)

TASK = "phrases"  # of the results
RESULTS_FILE = "phrase_recall.json"
ANY, MERGED = "any_box", "merged_boxes"
RANKS: tuple[int | None, ...] = (1, 5, 10, None)  # None: all boxes, the upper bound
IOU = 0.5
ALL_TYPES = "all"
_PHRASE = re.compile(r"\[/EN#(\d+)/([^\s\]]+) ([^\]]*)\]")


@dataclass(frozen=True)
class Phrase:
    """What is to be found.

    Attributes:
        boxes: (G, 4) XYXY; a phrase without any cannot be found, and does not count.
        types: of Flickr30k Entities, e.g. ("people",); none where they are not known.
    """

    boxes: NDArray[np.float64]
    types: tuple[str, ...] = ()


def overlaps(ours: NDArray, theirs: NDArray) -> NDArray[np.float64]:
    """(K, 4) and (G, 4) XYXY, ends not included -> IoU (K, G)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    first = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    last = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    shared = (last - first).clip(min=0).prod(axis=2)
    areas = [(one[:, 2:] - one[:, :2]).prod(axis=1) for one in (ours, theirs)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def merged(boxes: NDArray) -> NDArray[np.float64]:
    """(G, 4) XYXY -> the (1, 4) around all of them."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]


def phrase_recall(
    phrases: Sequence[Phrase], found: Sequence[NDArray], threshold: float = IOU
) -> dict[str, dict[tuple[int | None, str], float]]:
    """The share of phrases that are found.

    Args:
        phrases: of all images.
        found: of each its (K, 4) boxes, the best first.
        threshold: least IoU.

    Returns:
        "any_box" and "merged_boxes" -> (first k boxes, type of phrase) -> share from 0 to 1. A
        phrase counts for each of its types, and once for "all"; k None stands for all boxes.
    """
    recalls = {}
    for kind in (ANY, MERGED):
        hits: dict[tuple[int | None, str], list[bool]] = {}
        for phrase, boxes in zip(phrases, found, strict=True):
            targets = merged(phrase.boxes) if kind == MERGED else phrase.boxes
            best = overlaps(np.reshape(boxes, (-1, 4)), targets).max(axis=1)
            for k in RANKS:
                hit = bool((best[:k] >= threshold).any())
                for name in (ALL_TYPES, *dict.fromkeys(phrase.types)):
                    hits.setdefault((k, name), []).append(hit)
        recalls[kind] = {key: float(np.mean(values)) for key, values in hits.items()}
    return recalls


def boxes_of_phrases(
    boxes: NDArray, scores: NDArray, labels: NDArray, count: int
) -> list[NDArray[np.float64]]:
    """The detections of an image by phrase.

    Args:
        boxes: (N, 4) XYXY.
        scores: (N,).
        labels: (N,) whole numbers from 0 to `count` - 1.
        count: of phrases.

    Returns:
        Of each the boxes, the best first, and an empty one at the end, as in the public code.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4)[order], np.asarray(labels)[order]
    return [np.concatenate([boxes[labels == k], np.zeros((1, 4))]) for k in range(count)]


def read_sentence(line: str) -> list[tuple[str, tuple[str, ...]]]:
    """The phrases of a sentence of Flickr30k Entities: id and types of each.

    "[/EN#10/people/other A man] sleeps ." -> [("10", ("people", "other"))]
    """
    return [(one[1], tuple(one[2].split("/"))) for one in _PHRASE.finditer(line)]


def read_boxes(xml: str) -> dict[str, NDArray[np.float64]]:
    """An annotation file of Flickr30k Entities: id of a phrase -> its (G, 4) boxes."""
    boxes: dict[str, list[list[float]]] = {}
    for one in ElementTree.fromstring(xml).iter("object"):  # noqa: S314
        corners = one.find("bndbox")
        if corners is None:
            continue
        box = [float(corners.findtext(key, "nan")) for key in ("xmin", "ymin", "xmax", "ymax")]
        for name in one.iter("name"):
            boxes.setdefault(str(name.text), []).append(box)
    return {name: np.array(found) for name, found in boxes.items()}


def phrases_of_sentence(line: str, boxes: Mapping[str, NDArray]) -> list[Phrase]:
    """The phrases of a sentence that have boxes, in their order."""
    return [Phrase(boxes[name], types) for name, types in read_sentence(line) if name in boxes]


def phrases_of_record(record: Mapping[str, Any]) -> list[Phrase]:
    """The phrases of `tokens_positive_eval`, with the boxes that have spans in common with them."""
    objects = objects_of(record)
    found = []
    for spans in record[EVALUATED]:
        wanted = {tuple(one) for one in spans}
        own = [one for one in objects if wanted & set(spans_of(one))]
        boxes = [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in own]
        found.append(Phrase(np.array(boxes, np.float64).reshape(-1, 4)))
    return found


def phrases_of_entities(
    folder: Path, records: Iterable[Mapping[str, Any]]
) -> dict[Any, list[Phrase]]:
    """Image id of a record -> its phrases by the files of Flickr30k Entities.

    Args:
        folder: with `Annotations/ID.xml` and `Sentences/ID.txt`.
        records: have `original_img_id` and `sentence_id`.

    Raises:
        SetupError: there is no such folder; a file or a sentence is not there, or has not as many
            phrases as the record.
    """
    if not folder.is_dir():
        raise SetupError(
            [f"no folder at '{folder}': name one with Annotations/ID.xml and Sentences/ID.txt"]
        )
    found, problems = {}, []
    for record in records:
        name, number = record.get("original_img_id"), record.get("sentence_id")
        try:
            boxes = read_boxes((folder / "Annotations" / f"{name}.xml").read_text("utf-8"))
            lines = (folder / "Sentences" / f"{name}.txt").read_text("utf-8").splitlines()
            phrases = phrases_of_sentence(_sentence(lines, number), boxes)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            problems.append(f"{folder}: sentence {number} of image {name}: {error}")
            continue
        if len(phrases) != len(record[EVALUATED]):
            problems.append(
                f"{folder}: sentence {number} of image {name} has {len(phrases)} phrases with "
                f"boxes, the annotation file {len(record[EVALUATED])}: take files of one version"
            )
        found[record["image_id"]] = phrases
    if problems:
        raise SetupError(list(first_problems(problems, str(folder))))
    return found


def _sentence(lines: Sequence[str], number: Any) -> str:
    if not isinstance(number, int) or not 0 <= number < len(lines):
        raise ValueError(f"the file has {len(lines)} sentences, from 0 on")
    return lines[number]


def phrases_of_set(
    records: Iterable[Mapping[str, Any]], entities: str = ""
) -> dict[Any, list[Phrase]]:
    """Image id -> what is to be found in it.

    Args:
        records: of a grounding set.
        entities: folder of Flickr30k Entities, whose boxes are taken; "": those of the records.

    Raises:
        SetupError: see :func:`phrases_of_entities`.
    """
    if entities:
        return phrases_of_entities(Path(entities), records)
    return {one["image_id"]: phrases_of_record(one) for one in records}


def phrase_problems(
    name: str, records: Sequence[Mapping[str, Any]], entities: str = ""
) -> list[str]:
    """Why the phrases of a grounding set cannot be evaluated.

    Args:
        name: of the set, for messages.
        records: of it, each with `tokens_positive_eval`.
        entities: see :func:`phrases_of_set`.
    """
    try:
        phrases = [one for found in phrases_of_set(records, entities).values() for one in found]
    except SetupError as error:
        return [f"MODEL.GLIP.ENTITIES: {problem}" for problem in error.problems]
    if any(len(one.boxes) for one in phrases):
        return []
    return [f"'{name}': none of its {len(phrases)} phrases ({EVALUATED}) has a box to be found"]


class PhraseRecallEvaluator(DatasetEvaluator):
    """Recall of phrases of a grounding set.

    Labels of detections are the places of the phrases in `tokens_positive_eval`. Phrases without a
    box (crowds and boxes without area are none) are left out. Boxes of a phrase are those of the
    annotation file, or with `entities` those of Flickr30k Entities, whose ends are the last pixels;
    recall by type needs those.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        entities: str = "",
        output_dir: str | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered, its images with `tokens_positive_eval`.
            entities: folder of Flickr30k Entities; "": the annotation file says all.
            output_dir: gets `phrase_recall.json`; None: nothing is written.

        Raises:
            SetupError: see :func:`phrases_of_entities`.
        """
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self._last_pixels = bool(entities)
        records = DatasetCatalog.get(dataset_name)
        self._captions = [one[CAPTION] for one in records]
        self._phrases = phrases_of_set(records, entities)
        self._found: dict[Any, list[NDArray[np.float64]]] = {}

    @property
    def description(self) -> dict[str, str]:
        """Data set, protocol, and what is asked for."""
        boxes = "Flickr30k Entities" if self._last_pixels else "the annotation file"
        counted = [one for of_image in self._phrases.values() for one in of_image if len(one.boxes)]
        return {
            "dataset": self.dataset_name,
            "protocol": f"recall of phrases by any box and by merged boxes, IoU {IOU:g}, boxes of "
            f"{boxes}",
            "phrases": str(len(counted)),
            **captions_shown(self._captions),
        }

    def reset(self) -> None:
        self._found = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for one, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.numpy().astype(np.float64)
            if self._last_pixels:
                boxes = boxes - np.array([0, 0, 1, 1])
            count = len(self._phrases[one["image_id"]])
            self._found[one["image_id"]] = boxes_of_phrases(
                boxes, instances.scores.numpy(), instances.pred_classes.numpy(), count
            )

    def evaluate(self) -> dict[str, Any] | None:
        """Percent under "R@1", "R@5", "R@10", "R@all" and "merged-R@1" ...; "R@1-people" by type.
        Only rank 0 gets them.

        Raises:
            RuntimeError: the model has not seen all images.
        """
        comm.synchronize()
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return None
        found = {image: boxes for part in gathered for image, boxes in part.items()}
        missing = [one for one, phrases in self._phrases.items() if phrases and one not in found]
        if missing:
            raise RuntimeError(
                f"'{self.dataset_name}': no prediction for {len(missing)} of its "
                f"{len(self._phrases)} sentences, first image id {missing[0]}"
            )
        pairs = [
            (phrase, boxes)
            for image, of_image in found.items()
            for phrase, boxes in zip(self._phrases[image], of_image, strict=True)
            if len(phrase.boxes)
        ]
        phrases = [phrase for phrase, _ in pairs]
        recalls = phrase_recall(phrases, [boxes for _, boxes in pairs])
        results = named(recalls)
        logger.info(
            "Recall of phrases, percent\n%s\n\n%s",
            *(heading(self.description), recall_table(recalls)),
        )
        if self.output_dir:
            content = {**self.description, "phrases": len(phrases), "recall": results}
            atomic_write_json(Path(self.output_dir) / RESULTS_FILE, content)
        return {TASK: results}


def named(recalls: Mapping[str, Mapping[tuple[int | None, str], float]]) -> dict[str, float]:
    """Percent by name, as :meth:`PhraseRecallEvaluator.evaluate` returns them."""
    return {
        f"{'merged-' if kind == MERGED else ''}R@{k or 'all'}"
        + ("" if name == ALL_TYPES else f"-{name}"): 100 * share
        for kind, values in recalls.items()
        for (k, name), share in values.items()
    }


METRICS = tuple(
    f"{TASK}/{name}"
    for name in named({kind: {(k, ALL_TYPES): 0.0 for k in RANKS} for kind in (ANY, MERGED)})
)


def recall_table(recalls: Mapping[str, Mapping[tuple[int | None, str], float]]) -> str:
    """A Markdown table, percent."""
    rows = []
    for kind, values in recalls.items():
        for name in dict.fromkeys(name for _, name in values):
            cells = [f"{100 * values[k, name]:.1f}" for k in RANKS]
            rows.append([kind.replace("_", " "), name, *cells])
    header = ["boxes", "phrases", *(f"R@{k or 'all'}" for k in RANKS)]
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
