"""GLIP as the teacher, and a sheet of what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances
from torch import nn

from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.projects.glip.grounding import CAPTION, EVALUATED, SPANS
from ovd_d2.projects.glip.passengers import PhrasesToFind
from ovd_d2.projects.glip.prompts import Tokenizer
from ovd_d2.projects.glip.pseudo_labels.captions import CaptionedImage
from ovd_d2.visualization import SheetRow, picture_sheet

SHEET = "contact_sheet.png"
_SHOWN = 8  # images of a sheet


class GLIPTeacher:
    """A trained GLIP that looks for the phrases of a caption."""

    def __init__(self, model: nn.Module, cfg: CfgNode, tokenizer: Tokenizer) -> None:
        """
        Args:
            model: in eval mode.
            cfg: of its images.
            tokenizer: of the captions.
        """
        self._model = model
        options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=False)
        options["passengers"] = [PhrasesToFind(tokenizer)]
        self._mapper = OpenVocabularyDatasetMapper(**options)

    @torch.no_grad()
    def __call__(self, image: CaptionedImage) -> Instances:
        """Detections in pixels of the original image; labels are places of phrases."""
        record = asdict(image)
        record[EVALUATED] = record.pop("phrases")
        (found,) = self._model([self._mapper(record)])
        instances: Instances = found["instances"]
        return instances


def write_sheet(entries: Sequence[dict[str, Any]], folder: Path) -> Path | None:
    """The first images that have boxes, each beside its labels; None where no image has."""
    chosen = [one for one in entries if one["annotations"]][:_SHOWN]
    if not chosen:
        return None
    names: list[str] = []
    rows = []
    for one in chosen:
        shown = []
        for box in one["annotations"]:
            names.append(" ".join(one[CAPTION][first:end] for first, end in box[SPANS]))
            category = {"category_id": len(names) - 1, "bbox_mode": BoxMode.XYWH_ABS}
            shown.append({"bbox": box["bbox"], "score": box["score"], **category})
        rows.append(SheetRow(read_image(one["file_name"], "RGB"), [], shown))
    path = folder / SHEET
    title = "Pseudo labels: images, and what the teacher found in them"
    picture_sheet(rows, path, title, names=names, novel=[False] * len(names), score_threshold=0.0)
    return path
