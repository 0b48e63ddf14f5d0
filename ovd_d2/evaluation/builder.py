"""The one place that decides which evaluator serves a data set."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ovd_d2.data.public_sets import dataset_field
from ovd_d2.data.registration import register_data_sets
from ovd_d2.evaluation.coco_evaluator import OpenVocabularyCOCOEvaluator
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.lvis_evaluator import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.protocols import COCO, Protocol, lvis_protocol
from ovd_d2.evaluation.voc_evaluator import OpenVocabularyVOCEvaluator
from ovd_d2.systems import EvaluatorFactory, system_of

EVALUATORS = {
    "lvis": OpenVocabularyLVISEvaluator,
    "coco": OpenVocabularyCOCOEvaluator,
    # COCO's AP50, not VOC's own 11-point AP (datasets/README.md).
    "pascal_voc": OpenVocabularyVOCEvaluator,
}


def evaluator_factories(cfg: CfgNode) -> dict[str, EvaluatorFactory]:
    """evaluator_type of a data set's metadata -> what makes its evaluator.

    Those of detection, and what the system adds that the config is of.
    """
    factories: dict[str, EvaluatorFactory] = {
        kind: partial(_detection_evaluator, kind) for kind in EVALUATORS
    }
    system = system_of(cfg)
    return factories if system is None else {**factories, **system.evaluators}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator for `dataset_name` by its metadata's `evaluator_type`.

    For detection, base and novel come from `ovd_d2.data.categories.get_categories`. Masks are
    evaluated when `cfg.MODEL.MASK_ON`, unless the data set has the field `boxes_only` or its
    ground truth has no masks; `cfg.TEST.OVD` says how.

    Args:
        cfg: the complete config.
        dataset_name: registered.
        output_folder: None: `cfg.OUTPUT_DIR/inference`.

    Raises:
        KeyError: the data set is not registered.
        ValueError: no evaluator exists for its type, or a key of `cfg.TEST.OVD` has no such value.
    """
    register_data_sets([dataset_name])
    if dataset_name not in DatasetCatalog:
        raise KeyError(
            f"data set '{dataset_name}' is not registered with detectron2's DatasetCatalog; "
            "check DATASETS.TEST, or register it (see datasets/README.md)"
        )
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    factories = evaluator_factories(cfg)
    if evaluator_type not in factories:
        raise ValueError(
            f"data set '{dataset_name}' has evaluator_type {evaluator_type!r}, expected one of "
            f"{sorted(factories)}; set MetadataCatalog.get('{dataset_name}').evaluator_type"
        )
    folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
    return factories[evaluator_type](cfg, dataset_name, folder)


def _detection_evaluator(
    evaluator_type: str, cfg: CfgNode, dataset_name: str, output_folder: str
) -> DatasetEvaluator:
    system = system_of(cfg)
    masks = cfg.MODEL.MASK_ON and not dataset_field(dataset_name, "boxes_only", False)
    return EVALUATORS[evaluator_type](
        dataset_name,
        tasks=("bbox", "segm") if masks else ("bbox",),
        output_dir=output_folder,
        protocol=_protocol(cfg, evaluator_type),
        engine=build_engine(cfg.TEST.OVD.ENGINE),
        model_limit=cfg.TEST.DETECTIONS_PER_IMAGE,
        failures=cfg.TEST.OVD.FAILURES,
        settings={} if system is None else system.evaluation_settings(cfg, dataset_name),
    )


def _protocol(cfg: CfgNode, evaluator_type: str) -> Protocol:
    protocol = lvis_protocol(cfg.TEST.OVD.PROTOCOL)
    return protocol if evaluator_type == "lvis" else COCO
