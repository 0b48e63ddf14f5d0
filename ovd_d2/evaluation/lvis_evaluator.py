"""Detectron2's LVIS evaluator, extended by AP over base and over novel categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import LVISEvaluator

from ovd_d2.data.registration import register_data_sets
from ovd_d2.evaluation.engines import Engine
from ovd_d2.evaluation.evaluator_mixin import EvaluatorMixin
from ovd_d2.evaluation.protocols import FEDERATED, Protocol
from ovd_d2.evaluation.reference_engine import ReferenceEngine
from ovd_d2.lvis_compat import patch_lvis


class OpenVocabularyLVISEvaluator(EvaluatorMixin, LVISEvaluator):
    """Reports, for "bbox" and "segm": AP, AP50, AP75, APs, APm, APl, APr, APc, APf as LVIS defines
    them, and AP_base, AP_novel, AP50_base, AP50_novel (the same means over groups of categories).

    All values are percent. Categories without ground truth do not count; a group with none is nan.
    Categories that have ground truth but no detection have AP 0, also when the model detected
    nothing at all. Ground truth without segmentations is evaluated for boxes. What is written to
    the output folder: docs/evaluation.md.
    """

    results_file = "lvis_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        protocol: Protocol = FEDERATED,
        engine: Engine | None = None,
        **options: Any,
    ) -> None:
        """Args:
            dataset_name: a registered data set whose metadata has `json_file` (LVIS v1 format).
            tasks: among "bbox", "segm"; by default found from the predictions.
            distributed: gather the predictions of all ranks.
            output_dir: for detections, numbers and images; None writes nothing.
            protocol: `protocols.FEDERATED` or `protocols.FIXED`.
            engine: the reference (the lvis package) unless given.
            options: of :class:`DetectionEvaluation`: `model_limit`, `failures`, `settings`.

        Raises:
            ValueError: the annotations have other categories than the loader of the data set.
        """
        register_data_sets([dataset_name])
        patch_lvis()  # before the base class imports lvis
        super().__init__(
            dataset_name, tuple(tasks) if tasks is not None else None, distributed, output_dir
        )
        self._set_up(
            dataset_name,
            self._lvis_api.dataset,
            protocol=protocol,
            engine=engine or ReferenceEngine(),
            **options,
        )
