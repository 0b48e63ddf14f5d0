"""What Detectron2's LVIS and COCO evaluators lack, once for both."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm

from ovd_d2.data.categories import get_categories
from ovd_d2.evaluation.detection_evaluation import DetectionEvaluation
from ovd_d2.evaluation.engines import Engine
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.overlap import group_by_image
from ovd_d2.evaluation.protocols import Detection, Protocol
from ovd_d2.evaluation.streaming import BestPerCategory
from ovd_d2.evaluation.tables import evaluation_table
from ovd_d2.files import atomic_write
from ovd_d2.modeling.masks import BoxMasks
from ovd_d2.vocabulary import Categories


class EvaluatorMixin:
    """Goes before Detectron2's evaluator among the bases; `_set_up` after its `__init__`.

    Replaces how predictions are evaluated (`_eval_predictions`). `process` remembers where the
    images are, and under a protocol that limits the detections per category keeps no others: each
    rank its own best, from which rank 0 selects. The mask of a detection that cannot count any more
    is not encoded, and masks that come as `BoxMasks` are encoded from their boxes.
    """

    results_file: str  # where the detections go, in the output folder
    streams = True  # False: `_countable` has to see every detection
    _predictions: list[dict[str, Any]]
    _logger: logging.Logger
    _metadata: Any
    _output_dir: str | None
    _tasks: Sequence[str] | None
    _distributed: bool
    _do_evaluation: bool
    _results: dict[str, Any]

    def _set_up(
        self,
        dataset_name: str,
        dataset: Mapping[str, Any],
        *,
        protocol: Protocol,
        engine: Engine,
        **options: Any,
    ) -> None:
        """
        Args:
            dataset_name: as registered.
            dataset: the loaded annotation file.
            protocol: which detections count.
            engine: matches them.
            options: `model_limit`, `failures` and `settings`, see :class:`DetectionEvaluation`.
        """
        self._dataset = dataset
        self._files: dict[int, str] = {}
        categories = self._checked(get_categories(dataset_name))
        self.evaluation = DetectionEvaluation(dataset_name, categories, protocol, engine, **options)

    @property
    def description(self) -> dict[str, str]:
        """Data set, protocol, engine and settings, for whoever shows the numbers."""
        return self.evaluation.description

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._files = {}
        self._found: Counter[int] = Counter()  # detections per image that the model gave
        limit = self.evaluation.protocol.per_category
        # What comes before the limit of a category would have to be applied before this
        exact = self.streams and self.evaluation.protocol.per_image is None
        self._best = BestPerCategory(limit) if exact and limit is not None else None

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for one, output in zip(inputs, outputs, strict=True):
            self._found[one["image_id"]] += len(output.get("instances", ()))
            if "file_name" in one:
                self._files[one["image_id"]] = one["file_name"]
            if "instances" not in output:
                super().process([one], [output])  # type: ignore[misc]
                continue
            found = output["instances"]
            if self._best is not None:
                found = _admitted(found, self._best)
            super().process([one], [{**output, "instances": found[:0]}])  # type: ignore[misc]
            detections = detections_to_coco_json(found.to("cpu"), one["image_id"])
            if self._best is None:
                self._predictions[-1]["instances"] = detections
            else:
                self._best.add(detections)  # `evaluate` gives them back to their images

    def evaluate(self) -> dict[str, Any] | None:
        if self._best is not None:
            kept = group_by_image(self._best.detections())
            for one in self._predictions:
                if "instances" in one:
                    one["instances"] = kept.pop(one["image_id"], [])
        if self._distributed:
            gathered = comm.gather((self._files, self._found), dst=0)
            self._files = {key: name for files, _ in gathered for key, name in files.items()}
            self._found = sum((found for _, found in gathered), Counter())
        return super().evaluate()  # type: ignore[misc]

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        """Hook of the base class: fills `self._results` with the metrics of each task."""
        if img_ids is not None:
            raise ValueError("evaluation of some images only is not supported; pass img_ids=None")
        detections = list(itertools.chain(*(one["instances"] for one in predictions)))
        ids = self.evaluation.categories.ids
        results = [{**one, "category_id": ids[one["category_id"]]} for one in detections]
        tasks = self._tasks or self._tasks_from_predictions(detections)  # type: ignore[attr-defined]
        if self._output_dir:
            self._save(results, Path(self._output_dir) / self.results_file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        rules, name = self.evaluation.protocol.rules, self.evaluation.dataset_name
        truth = GroundTruth(self._dataset, rules, name, masks="segm" in tasks)
        counted = self._countable(results)
        metrics = self.evaluation.run(
            truth, counted, tasks, self._output_dir, self._files, self._found
        )
        self._logger.info("Evaluated\n%s", evaluation_table(self.description, metrics))
        self._results.update(metrics)

    def _countable(self, detections: list[dict[str, Any]]) -> Sequence[Detection]:
        """Hook: the detections that are for or against the model at all; here every one."""
        return detections

    def _save(self, results: list[dict[str, Any]], path: Path) -> None:
        with atomic_write(path) as temporary:  # compact: LVIS val has millions of detections
            temporary.write_text(json.dumps(results))
        self._logger.info("Saved %d detections to %s", len(results), path)

    def _checked(self, categories: Categories) -> Categories:
        """The annotations must number them as the loader does: it numbers the detections."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        annotated = sorted(one["id"] for one in self._dataset["categories"])
        ids = annotated if mapping is None else sorted(mapping, key=mapping.__getitem__)
        if categories.ids != ids:
            raise ValueError(
                f"data set '{self._metadata.name}' is loaded with {len(categories)} categories "
                f"(ids {categories.ids[:5]} ...), its annotations have {len(ids)} "
                f"(ids {ids[:5]} ...): register the annotation file that it is loaded from"
            )
        return categories


def detections_to_coco_json(found: Instances, image_id: int) -> list[dict[str, Any]]:
    """Detectron2's `instances_to_coco_json`, also of masks that are in their boxes; on the CPU."""
    masks = found.get_fields().get("pred_masks")
    if not isinstance(masks, BoxMasks):
        return instances_to_coco_json(found, image_id)
    others = {name: value for name, value in found.get_fields().items() if name != "pred_masks"}
    records = instances_to_coco_json(Instances(found.image_size, **others), image_id)
    encoded = zip(records, masks.to_rle(), strict=True)
    return [{**record, "segmentation": rle} for record, rle in encoded]


def _admitted(found: Instances, best: BestPerCategory) -> Instances:
    """The detections of one image that may yet count."""
    admitted = best.admits(found.pred_classes.cpu().numpy(), found.scores.cpu().numpy())
    return found if admitted.all() else found[torch.as_tensor(admitted, device=found.scores.device)]
