"""Detectron2's COCO evaluator, extended by AP over base and over novel categories."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd_d2.evaluation.groups import CategoryAP, check_novel_flags, write_per_category


class OpenVocabularyCOCOEvaluator(COCOEvaluator):
    """Reports COCO's AP, AP50, AP75, APs, APm, APl and AP_base, AP_novel, AP50_base, AP50_novel.

    All values are percent; a group of categories without ground truth is nan; a model that
    detected nothing has AP 0. AP of every category goes to `per_category.json` in the output
    folder. This is the generalised protocol: one classifier over all categories, `AP50` is the
    mean over base and novel together.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        novel: Sequence[bool],
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
    ) -> None:
        """Args:
            dataset_name: a registered data set, in COCO format or convertible to it.
            tasks: among "bbox", "segm"; by default found from the predictions.
            distributed: gather the predictions of all ranks.
            output_dir: for `coco_instances_results.json` and `per_category.json`.
            novel: one flag per category in contiguous class order.
            max_dets_per_image: COCO's limit of 100 unless told.
            use_fast_impl: detectron2's compiled evaluation; without the compiled part of
                detectron2 pycocotools is used whatever this says.

        Raises:
            ValueError: the number of flags is not the number of categories.
        """
        super().__init__(
            dataset_name,
            tuple(tasks) if tasks is not None else None,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=use_fast_impl and fast_evaluation_available(),
        )
        self._category_ids = self._contiguous_category_ids()
        check_novel_flags(novel, len(self._category_ids))
        self._novel = [bool(flag) for flag in novel]
        self._tables: dict[str, CategoryAP] = {}

    def reset(self) -> None:
        super().reset()
        self._tables = {}

    def _contiguous_category_ids(self) -> list[int]:
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        if mapping is None:
            return sorted(self._coco_api.getCatIds())
        return sorted(mapping, key=mapping.__getitem__)

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Hook of the base class, called once per IoU type; `coco_eval` None: no detections."""
        if coco_eval is None:
            coco_eval = self._evaluate_nothing(iou_type)
        results = super()._derive_coco_results(coco_eval, iou_type)
        if iou_type not in ("bbox", "segm"):
            return results
        table = self._category_ap(coco_eval, class_names)
        means = table.group_means()
        self._logger.info("Base and novel categories, %s:\n%s", iou_type, create_small_table(means))
        self._tables[iou_type] = table
        if self._output_dir:
            write_per_category(self._tables, Path(self._output_dir))
        return {**results, **means}

    def _evaluate_nothing(self, iou_type: str) -> COCOeval:
        """COCOeval on an empty list of detections: AP 0 wherever there is ground truth."""
        self._logger.warning("No predictions from the model: its AP is 0.")
        nothing = COCO()
        nothing.dataset = {**self._coco_api.dataset, "annotations": []}
        with contextlib.redirect_stdout(io.StringIO()):
            nothing.createIndex()
            coco_eval = COCOeval(self._coco_api, nothing, iou_type)
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return coco_eval

    def _category_ap(self, coco_eval: Any, class_names: Sequence[str] | None) -> CategoryAP:
        column = {category_id: k for k, category_id in enumerate(coco_eval.params.catIds)}
        columns = [column[category_id] for category_id in self._category_ids]
        precision = coco_eval.eval["precision"][:, :, columns, 0, -1]  # (T, R, C), all areas
        names = class_names or [self._coco_api.cats[one]["name"] for one in self._category_ids]
        return CategoryAP.from_precision(names, self._novel, np.asarray(precision))


def fast_evaluation_available() -> bool:
    """Whether detectron2 was built with its compiled extension."""
    try:
        import detectron2._C  # noqa: F401
    except ImportError as error:
        logging.getLogger(__name__).debug("pycocotools evaluates COCO: %s", error)
        return False
    return True
