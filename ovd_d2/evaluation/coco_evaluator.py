"""Detectron2's COCO evaluator, extended by AP over base and over novel categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator

from ovd_d2.data.registration import register_data_sets
from ovd_d2.evaluation.engines import Engine
from ovd_d2.evaluation.evaluator_mixin import EvaluatorMixin
from ovd_d2.evaluation.protocols import COCO, Protocol
from ovd_d2.evaluation.reference_engine import ReferenceEngine


class OpenVocabularyCOCOEvaluator(EvaluatorMixin, COCOEvaluator):
    """Reports COCO's AP, AP50, AP75, APs, APm, APl and AP_base, AP_novel, AP50_base, AP50_novel.

    All values are percent; a group of categories without ground truth is nan; a model that
    detected nothing has AP 0. Ground truth without segmentations is evaluated for boxes. This is
    the generalised protocol: one classifier over all categories, `AP50` is the mean over base and
    novel together. What is written to the output folder: docs/evaluation.md.
    """

    results_file = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        protocol: Protocol = COCO,
        engine: Engine | None = None,
        **options: Any,
    ) -> None:
        """Args:
            dataset_name: a registered data set, in COCO format or convertible to it.
            tasks: among "bbox", "segm"; by default found from the predictions.
            distributed: gather the predictions of all ranks.
            output_dir: for detections, numbers and images; None writes nothing.
            protocol: `protocols.COCO`, or one with another limit.
            engine: the reference (pycocotools) unless given.
            options: of :class:`DetectionEvaluation`: `model_limit`, `failures`, `settings`.

        Raises:
            ValueError: the annotations have other categories than the loader of the data set.
        """
        register_data_sets([dataset_name])
        super().__init__(
            dataset_name,
            tuple(tasks) if tasks is not None else None,
            distributed,
            output_dir,
            use_fast_impl=False,  # the engine evaluates, not detectron2
            allow_cached_coco=False,  # a data set's function may return something else by now
        )
        self._set_up(
            dataset_name,
            self._coco_api.dataset,
            protocol=protocol,
            engine=engine or ReferenceEngine(),
            **options,
        )
