"""Detectors as ONNX files whose names are an input."""

from ovd_d2.export.detector import check_parity, export_detector
from ovd_d2.export.runtime import OnnxDetector, compare

__all__ = ["OnnxDetector", "check_parity", "compare", "export_detector"]
