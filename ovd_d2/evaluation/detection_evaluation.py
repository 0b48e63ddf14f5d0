"""From detections to numbers and files: what the LVIS and the COCO evaluator have in common."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ovd_d2.evaluation.confusion import novel_confusion, write_confusion
from ovd_d2.evaluation.engines import Engine
from ovd_d2.evaluation.failures import write_failures
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.groups import (
    CategoryAP,
    named_metrics,
    write_category_csv,
    write_per_category,
)
from ovd_d2.evaluation.protocols import Detection, Protocol, select
from ovd_d2.vocabulary import Categories

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]


@dataclass(frozen=True)
class DetectionEvaluation:
    """Evaluates detections of one data set and writes the files that tell why.

    Attributes:
        dataset_name: as printed.
        categories: of the data set.
        protocol: which detections count.
        engine: matches them.
        model_limit: detections per image that the model gives at most (`TEST.DETECTIONS_PER_IMAGE`;
            negative: no limit), for a warning where it cuts into what the protocol allows.
        failures: crops on each sheet of the failure browser; 0: none is made.
        settings: title -> text of what else the numbers depend on
            (:class:`ovd_d2.systems.System`, `evaluation_settings`).
    """

    dataset_name: str
    categories: Categories
    protocol: Protocol
    engine: Engine
    model_limit: int = -1
    failures: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, str]:
        """What the numbers are, for every place where they are shown."""
        return {
            "dataset": self.dataset_name,
            "protocol": self.protocol.title,
            "engine": self.engine.describe(self.protocol.rules),
            **self.settings,
        }

    def run(
        self,
        ground_truth: GroundTruth,
        detections: Sequence[Detection],
        tasks: Sequence[str],
        output_folder: str | Path | None = None,
        files: Mapping[int, str] | None = None,
        found: Mapping[int, int] | None = None,
    ) -> Results:
        """
        Args:
            ground_truth: under the protocol's rules.
            detections: COCO-style results with category ids of the data set.
            tasks: among "bbox", "segm"; masks are left out, with a warning, where the ground truth
                has none.
            output_folder: for per_category.json, per_category.csv, novel_confusion.json and the
                folder "failures".
            files: image id -> image, for the failure browser.
            found: image id -> detections that the model gave, where `detections` are fewer.

        Returns:
            task -> metric -> percent; nan where nothing has ground truth.

        Raises:
            ValueError: detections and ground truth do not fit, or masks are wanted and not there.
        """
        tasks = _tasks_with_ground_truth(tasks, ground_truth)
        _check_masks(tasks, detections)
        ground_truth.check(detections)
        if not detections:
            logger.warning("No predictions from the model: its AP is 0.")
        self._warn_of_model_limit(found or Counter(one["image_id"] for one in detections))
        counted = select(detections, self.protocol)
        results: Results = {}
        tables: dict[str, CategoryAP] = {}
        for task in tasks:
            results[task], tables[task] = self._run_task(ground_truth, counted, task)
        if output_folder is not None and tables:
            self._write(ground_truth, counted, tables, Path(output_folder), files or {})
        return results

    def _run_task(
        self, ground_truth: GroundTruth, counted: Sequence[Detection], task: str
    ) -> tuple[dict[str, float], CategoryAP]:
        precision = self.engine.precision(ground_truth, counted, task)  # (T, R, C, A)
        column = {category_id: k for k, category_id in enumerate(ground_truth.category_ids)}
        precision = precision[:, :, [column[one] for one in self.categories.ids]]
        table = CategoryAP.from_precision(self.categories, precision[..., 0])
        metrics = named_metrics(precision, self.categories.frequencies)
        return {**metrics, **table.group_means()}, table

    def _write(
        self,
        ground_truth: GroundTruth,
        counted: Sequence[Detection],
        tables: Mapping[str, CategoryAP],
        folder: Path,
        files: Mapping[int, str],
    ) -> None:
        write_per_category(tables, folder)
        write_category_csv(tables, folder, self.categories, ground_truth.objects_per_category())
        if "bbox" in tables:
            ap50 = tables["bbox"].ap50.tolist()
            write_confusion(novel_confusion(ground_truth, counted, self.categories, ap50), folder)
        if self.failures:
            write_failures(
                folder / "failures",
                ground_truth,
                counted,
                self.categories,
                self.description,
                files,
                self.failures,
            )

    def _warn_of_model_limit(self, found: Mapping[int, int]) -> None:
        limit, allowed = self.model_limit, self.protocol.per_image
        if limit < 0 or (allowed is not None and limit >= allowed):
            return
        if self.protocol.rules == "coco":  # its limit is one of each category
            return
        full = sum(number >= limit for number in found.values())
        if full:
            logger.log(
                logging.WARNING if allowed is None else logging.INFO,
                "%s counts %s detections per image, but TEST.DETECTIONS_PER_IMAGE is %d and cut "
                "them off in %d of %d images: raise it%s, or say so beside the numbers.",
                self.protocol.name,
                "all" if allowed is None else f"the best {allowed}",
                limit,
                full,
                len(found),
                "" if allowed is None else f" to {allowed}",
            )


def _tasks_with_ground_truth(tasks: Sequence[str], ground_truth: GroundTruth) -> list[str]:
    unknown = set(tasks) - {"bbox", "segm"}
    if unknown:
        raise ValueError(f"tasks {sorted(unknown)} cannot be evaluated, expected bbox, segm")
    if "segm" in tasks and not ground_truth.has_masks:
        logger.warning("%s has boxes only: mask AP is left out.", ground_truth.source)
        return [task for task in sorted(tasks) if task != "segm"]
    return sorted(tasks)


def _check_masks(tasks: Sequence[str], detections: Sequence[Detection]) -> None:
    if "segm" in tasks and any("segmentation" not in one for one in detections):
        raise ValueError(
            "mask AP is asked for, but the model predicted no masks: set MODEL.MASK_ON False "
            'or give the evaluator tasks=("bbox",)'
        )
