"""Boxes for the phrases of captions by a trained detector, the teacher (GLIP, section 3.3)."""

from ovd_d2.projects.glip.pseudo_labels.captions import (
    FINDERS,
    CaptionedImage,
    images_of_data_set,
    images_of_folder,
    phrases_of_list,
)
from ovd_d2.projects.glip.pseudo_labels.labelling import Detector, label_images, labels_of
from ovd_d2.projects.glip.pseudo_labels.shards import (
    DATA_SET,
    DATA_SET_FILE,
    LABELS,
    LabelRun,
    Settings,
)

__all__ = [
    "DATA_SET",
    "DATA_SET_FILE",
    "LABELS",
    "FINDERS",
    "CaptionedImage",
    "Detector",
    "LabelRun",
    "Settings",
    "images_of_data_set",
    "images_of_folder",
    "label_images",
    "labels_of",
    "phrases_of_list",
]
