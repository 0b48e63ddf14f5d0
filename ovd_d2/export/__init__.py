"""Detectors as ONNX files whose names are an input."""

from ovd_d2.export.detector import check_parity, export_detector
from ovd_d2.export.evaluation import OnnxModel, evaluate
from ovd_d2.export.runtime import OnnxDetector, compare

__all__ = [
    "OnnxDetector",
    "OnnxModel",
    "check_parity",
    "compare",
    "evaluate",
    "export_detector",
]
