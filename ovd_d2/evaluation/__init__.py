"""Evaluation by frequency and by base / novel categories."""

from ovd_d2.evaluation.builder import build_evaluator
from ovd_d2.evaluation.coco_evaluator import OpenVocabularyCOCOEvaluator
from ovd_d2.evaluation.confusion import (
    CategoryConfusion,
    confusion_table,
    novel_confusion,
    read_confusion,
)
from ovd_d2.evaluation.groups import CategoryAP
from ovd_d2.evaluation.inference import masks_in_boxes
from ovd_d2.evaluation.lvis_evaluator import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.tables import results_table

__all__ = [
    "CategoryAP",
    "CategoryConfusion",
    "OpenVocabularyCOCOEvaluator",
    "OpenVocabularyLVISEvaluator",
    "build_evaluator",
    "confusion_table",
    "masks_in_boxes",
    "novel_confusion",
    "read_confusion",
    "results_table",
]
