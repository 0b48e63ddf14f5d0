"""Detectron2's evaluator of region classification (CLIPSelf, arXiv 2310.01403, table 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from ovd_d2.clip.dense import mask_features, roi_features
from ovd_d2.files import atomic_write_json
from ovd_d2.projects.clipself.region_classification.metrics import (
    MacroAccuracy,
    best_classes,
    macro_accuracy,
)
from ovd_d2.projects.clipself.region_classification.segments import SEGMENTS, Segments

logger = logging.getLogger(__name__)

RESULTS_FILE = "region_classification.json"
TASK = "regions"  # of the results
TOP = (1, 5)
BATCH = 64  # crops
# (K, 3, s, s) uint8 RGB crops -> (K, D)
Crops = Callable[[Tensor], Tensor]


class Named(NamedTuple):
    """What came out for one image: all have K rows.

    Attributes:
        classes: int64, what the segments are.
        is_thing: bool.
        best: kind of feature -> (K, 5) the most similar categories.
    """

    classes: np.ndarray
    is_thing: np.ndarray
    best: dict[str, np.ndarray]


class RegionClassificationEvaluator(DatasetEvaluator):
    """Names segments by their features: RoIAlign of the box, the mean over the mask, image crops.

    A model's output per image is a dict with `dense_features`, (D, h, w) unit vectors, and
    `padded_size`, the (height, width) in pixels of the input, padding included, that they cover.
    Inputs have `image` (C, H, W), `height`, `width`, `image_id` and `segments`
    (:class:`ovd_d2.projects.clipself.region_classification.segments.SegmentsOfImage`).

    An image counts once, however many processes have seen it. A region without features, e.g. one
    with a mask that no patch belongs to, counts as named wrong.
    """

    def __init__(
        self,
        dataset_name: str,
        names: Sequence[str],
        embeddings: Tensor,
        *,
        owners: Tensor | None = None,
        crops: Crops | None = None,
        antialias: bool = False,
        output_dir: str | None = None,
    ) -> None:
        """
        Args:
            dataset_name: for the table.
            names: of the C categories.
            embeddings: (W, D) of their names and synonyms.
            owners: (W,) int64, which category each word is, the best of which counts; None: each
                has its name alone.
            crops: features of image crops, the ceiling; None: they are not looked at.
            antialias: of masks that are resized to patches; False as in the published figures of
                2023, see :func:`.segments.mask_on_grid`.
            output_dir: gets `region_classification.json`; None: nothing is written.
        """
        self.dataset_name = dataset_name
        self.names = list(names)
        self.embeddings = embeddings
        self.owners = owners
        self.crops = crops
        self.antialias = antialias
        self.output_dir = output_dir
        self._found: dict[Any, Named] = {}

    @property
    def description(self) -> dict[str, str]:
        """Data set and how masks were resized."""
        how = "with" if self.antialias else "without"
        return {"data set": self.dataset_name, "masks": f"resized {how} antialiasing"}

    def reset(self) -> None:
        self._found = {}

    @torch.no_grad()
    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for one, output in zip(inputs, outputs, strict=True):
            segments: Segments = one[SEGMENTS]
            features = self.features(one, output)
            best = {kind: self._best(found) for kind, found in features.items()}
            classes, is_thing = segments.classes.numpy(), segments.is_thing.numpy()
            self._found[one["image_id"]] = Named(classes, is_thing, best)

    def features(self, image: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Tensor]:
        """Kind -> (K, D) features of the segments of one image, of any length."""
        segments: Segments = image[SEGMENTS]
        dense, padded = output["dense_features"], output["padded_size"]
        scale = max(image["image"].shape[1:]) / max(segments.size)  # of the image, unrounded
        boxes = segments.boxes.to(dense.device) * scale
        masks = segments.on_grid(
            scale * dense.shape[1] / padded[0], dense.shape[1:], antialias=self.antialias
        )
        found = {
            "boxes": roi_features(dense[None], [boxes], [padded]),
            "masks": mask_features(dense, masks.to(dense.device)),
        }
        if self.crops is not None and segments.crops is not None:
            parts = [self.crops(part) for part in segments.crops.split(BATCH)]
            found["crops"] = torch.cat(parts) if len(segments) else dense.new_zeros(0, len(dense))
        return found

    def _best(self, features: Tensor) -> np.ndarray:
        embeddings = self.embeddings.to(features.device)
        owners = None if self.owners is None else self.owners.to(features.device)
        return best_classes(features, embeddings, max(TOP), owners).cpu().numpy()

    def evaluate(self) -> dict[str, Any] | None:
        """Percent under names like "boxes-things-top1"; with "-float16" at the end each category's
        share is rounded as in the public code. Only rank 0 gets them."""
        comm.synchronize()
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return None
        found = {image: named for part in gathered for image, named in part.items()}
        rows = accuracies(list(found.values()))
        groups = {group for _, group, _ in rows}
        for group in ("things", "stuff"):
            if group not in groups:
                logger.info("'%s': %s: no segment that counts", self.dataset_name, group)
        logger.info(
            "Region classification on '%s' (%d images; masks %s), percent\n%s",
            *(self.dataset_name, len(found), self.description["masks"], accuracy_table(rows)),
        )
        results = {}
        for (kind, group, k), one in rows.items():
            results[f"{kind}-{group}-top{k}"] = 100 * one.exact
            results[f"{kind}-{group}-top{k}-float16"] = 100 * one.rounded
        if self.output_dir:
            self._write(rows, len(found))
        return {TASK: results}

    def _write(self, rows: Mapping[tuple[str, str, int], MacroAccuracy], images: int) -> None:
        """Shares from 0 to 1, also of each category."""
        accuracy = [
            {
                "feature": kind,
                "group": group,
                "top": k,
                "exact": one.exact,
                "float16": one.rounded,
                "regions": one.regions,
                "categories": one.categories,
                "per_category": {self.names[c]: share for c, share in one.per_category.items()},
            }
            for (kind, group, k), one in rows.items()
        ]
        assert self.output_dir is not None
        content = {**self.description, "images": images, "accuracy": accuracy}
        atomic_write_json(Path(self.output_dir) / RESULTS_FILE, content)


def accuracies(found: Sequence[Named]) -> dict[tuple[str, str, int], MacroAccuracy]:
    """(kind of feature, "things" or "stuff", k) -> accuracy within the best k, for what is there.

    Args:
        found: of every image.
    """
    if not found:
        return {}
    classes = np.concatenate([one.classes for one in found])
    is_thing = np.concatenate([one.is_thing for one in found])
    rows = {}
    for kind in found[0].best:
        best = np.concatenate([one.best[kind] for one in found])
        for group, chosen in (("things", is_thing), ("stuff", ~is_thing)):
            for k in TOP:
                hits = (best[chosen, :k] == classes[chosen, None]).any(axis=1)
                accuracy = macro_accuracy(hits.tolist(), classes[chosen].tolist())
                if accuracy is not None:
                    rows[kind, group, k] = accuracy
    return rows


def accuracy_table(rows: Mapping[tuple[str, str, int], MacroAccuracy]) -> str:
    """A Markdown table, in percent, one row per kind of feature and group."""
    first = max(TOP)
    body = []
    for (kind, group, k), one in rows.items():
        if k == first:
            shown = [rows[kind, group, top] for top in TOP]
            cells = [f"{100 * value:.2f}" for a in shown for value in (a.exact, a.rounded)]
            body.append([kind, group, *cells, one.regions, one.categories])
    header = ["feature", "group"]
    header += [f"top-{k}{how}" for k in TOP for how in ("", " (float16)")]
    return tabulate(
        body, [*header, "regions", "categories"], tablefmt="pipe", disable_numparse=True
    )
