"""Detectron2's LVIS evaluator, extended by AP over base and over novel categories."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.evaluation import LVISEvaluator
from detectron2.utils.logger import create_small_table

from ovd_d2.evaluation.groups import CategoryAP, check_novel_flags, percent, write_per_category
from ovd_d2.evaluation.lvis_runner import MAX_DETECTIONS_PER_IMAGE, run_lvis_eval
from ovd_d2.files import atomic_write

if TYPE_CHECKING:  # at run time lvis is imported by lvis_runner alone, after its repair
    from lvis import LVISEval

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class OpenVocabularyLVISEvaluator(LVISEvaluator):
    """Reports, for "bbox" and "segm": AP, AP50, AP75, APs, APm, APl, APr, APc, APf as LVIS defines
    them, and AP_base, AP_novel, AP50_base, AP50_novel (the same means over groups of categories).

    All values are percent. Categories without ground truth do not count; a group with none is nan.
    Categories that have ground truth but no detection have AP 0, also when the model detected
    nothing at all. AP of every category goes to `per_category.json` in the output folder.

    The protocol is LVIS's federated one: the best 300 detections of an image across categories
    (not "fixed AP", arXiv 2102.01066).
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        novel: Sequence[bool],
        max_dets_per_image: int = MAX_DETECTIONS_PER_IMAGE,
    ) -> None:
        """Args:
            dataset_name: a registered data set whose metadata has `json_file` (LVIS v1 format).
            tasks: among "bbox", "segm"; by default found from the predictions.
            distributed: gather the predictions of all ranks.
            output_dir: for `lvis_instances_results.json` and `per_category.json`.
            novel: one flag per category in contiguous class order.
            max_dets_per_image: best-scored detections an image that count; -1 for all.

        Raises:
            ValueError: the number of flags is not the number of categories.
        """
        super().__init__(
            dataset_name,
            tuple(tasks) if tasks is not None else None,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
        )
        self._category_ids = self._contiguous_category_ids()
        check_novel_flags(novel, len(self._category_ids))
        self._novel = [bool(flag) for flag in novel]

    def _contiguous_category_ids(self) -> list[int]:
        """Data set category ids in contiguous class order (LVIS itself: id = class + 1)."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        if mapping is None:
            return sorted(self._lvis_api.get_cat_ids())
        return sorted(mapping, key=mapping.__getitem__)

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        """Hook of the base class: fills `self._results` with the metrics of each task."""
        detections = list(itertools.chain(*(one["instances"] for one in predictions)))
        tasks = self._tasks or self._tasks_from_predictions(detections)
        results = [
            {**one, "category_id": self._category_ids[one["category_id"]]} for one in detections
        ]
        if self._output_dir:
            path = Path(self._output_dir) / "lvis_instances_results.json"
            with atomic_write(path) as temporary:  # compact: LVIS val has millions of detections
                temporary.write_text(json.dumps(results))
            self._logger.info("Saved %d detections to %s", len(results), path)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        if not results:
            self._logger.warning("No predictions from the model: its AP is 0.")
        self._evaluate_tasks(results, sorted(tasks))

    def _evaluate_tasks(self, results: list[dict[str, Any]], tasks: list[str]) -> None:
        if "segm" in tasks and any("segmentation" not in one for one in results):
            raise ValueError(
                "mask AP is asked for, but the model predicted no masks: set MODEL.MASK_ON False "
                'or give the evaluator tasks=("bbox",)'
            )
        tables: dict[str, CategoryAP] = {}
        for task in tasks:
            lvis_eval = run_lvis_eval(
                self._lvis_api, results, task, max_dets_per_image=self._max_dets_per_image
            )
            tables[task] = self._category_ap(lvis_eval)
            metrics = {name: percent(lvis_eval.results[name]) for name in METRICS}
            metrics.update(tables[task].group_means())
            self._results[task] = metrics
            self._logger.info("Evaluation results for %s:\n%s", task, create_small_table(metrics))
        if self._output_dir:
            write_per_category(tables, Path(self._output_dir))

    def _category_ap(self, lvis_eval: LVISEval) -> CategoryAP:
        column = {category_id: k for k, category_id in enumerate(lvis_eval.params.cat_ids)}
        columns = [column[category_id] for category_id in self._category_ids]
        precision = lvis_eval.eval["precision"][:, :, columns, 0]  # (T, R, C), all areas
        names = [self._lvis_api.cats[category_id]["name"] for category_id in self._category_ids]
        names = self._metadata.get("thing_classes", None) or names
        return CategoryAP.from_precision(names, self._novel, precision)
