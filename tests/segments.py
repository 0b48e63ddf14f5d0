"""The mini Pictograms with panoptic files, and a small CLIP to name its segments with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ovd_d2.clip.vocabulary_builder import build_vocabulary
from ovd_d2.data.categories import get_categories
from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.dataset import prepare
from ovd_d2.projects.clipself.segment_sets import SegmentFiles, write_panoptic
from tests.catalog import forget
from tests.tiny_vits import DIM, EVA, SIDE, folder_of_architecture, tiny_clip, tiny_teacher

SOURCE = "pictograms_v1_mini_val"
REGIONS, PANOPTIC, SEMANTIC = (f"{SOURCE}_{kind}" for kind in ("regions", "panoptic", "semantic"))
ALL = (SOURCE, REGIONS, PANOPTIC, SEMANTIC)
CONFIG = "projects/CLIPSelf/configs/dense_clip.yaml"


@dataclass(frozen=True)
class SegmentsOnDisk:
    """`folder` is DETECTRON2_DATASETS; beside it a small CLIP and its vocabulary."""

    folder: Path

    @property
    def files(self) -> SegmentFiles:
        return SegmentFiles.beside(self.folder / "pictograms_v1_mini", SOURCE)

    @property
    def clip(self) -> Path:
        return self.folder / "clip.pt"

    @property
    def vocabulary(self) -> Path:
        return self.folder / "vocabulary.safetensors"

    def options(self, *test_sets: str) -> list[str]:
        """KEY VALUE pairs for `CONFIG`."""
        listed = ", ".join(f"'{one}'" for one in test_sets)
        fixed: dict[str, Any] = {
            "MODEL.DEVICE": "cpu",
            "MODEL.OVD.EMBEDDING_DIM": DIM,
            "MODEL.OVD.VOCABULARY": self.vocabulary,
            "MODEL.OVD.TEACHER.ARCHITECTURE": EVA,
            "MODEL.OVD.TEACHER.PRETRAINED": self.clip,
            "INPUT.MIN_SIZE_TEST": 2 * SIDE,
            "INPUT.MAX_SIZE_TEST": 2 * SIDE,
            "DATASETS.TEST": f"({listed},)",
            "DATALOADER.NUM_WORKERS": 0,
            "OUTPUT_DIR": self.folder / "output",
        }
        return [str(word) for pair in fixed.items() for word in pair]

    def config(self, *test_sets: str, opts: list[str] | None = None) -> Any:
        return load_config(CONFIG, [*self.options(*test_sets), *(opts or [])])


@contextmanager
def segments_on_disk(folder: Path) -> Iterator[SegmentsOnDisk]:
    """Draws the data set into a folder and registers it there."""
    place = SegmentsOnDisk(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        forget(*ALL)
        prepare(folder, full=False, workers=1, progress=False)
        register_data_sets(ALL)
        write_panoptic(SOURCE, place.files, progress=False)
        folder_of_architecture(folder, EVA)
        torch.save(tiny_clip(EVA).state_dict(), place.clip)
        teacher = tiny_teacher(EVA)
        build_vocabulary(get_categories(REGIONS), teacher, prompts="single").save(place.vocabulary)
        yield place
    forget(*ALL)
