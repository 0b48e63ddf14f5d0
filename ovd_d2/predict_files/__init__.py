"""The predictor over image files, folders and videos: drawings, detections and annotations.

What is found is noted file by file in `progress.jsonl`, so that a run that ended early goes on
where it was when the same command is given again.
"""

from ovd_d2.predict_files.inputs import check_files, expand_inputs
from ovd_d2.predict_files.outputs import (
    COCO,
    DRAWINGS,
    LABEL_STUDIO,
    OUTPUTS,
    nothing_message,
    skipped_message,
)
from ovd_d2.predict_files.run import Predictions, Request, predict_files

__all__ = [
    "COCO",
    "DRAWINGS",
    "LABEL_STUDIO",
    "OUTPUTS",
    "Predictions",
    "Request",
    "check_files",
    "expand_inputs",
    "nothing_message",
    "predict_files",
    "skipped_message",
]
