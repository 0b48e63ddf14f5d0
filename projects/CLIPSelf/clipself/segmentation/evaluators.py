"""Evaluators of semantic and panoptic segmentation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.region_classification.segments import read_id_map
from ovd_d2.projects.clipself.segmentation.quality import Counts, matches

logger = logging.getLogger(__name__)

TASK = "panoptic_seg"  # of the results, as Detectron2's


class PanopticEvaluator(DatasetEvaluator):
    """PQ of a model whose `category_id` are places in the vocabulary, that of the data set.

    The results are called as those of Detectron2's `COCOPanopticEvaluator`. An image counts once,
    however many processes have seen it.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: of COCO's panoptic format, whose metadata number all categories alike
                (Detectron2's "standard" form: `coco_2017_val_panoptic`).

        Raises:
            SetupError: things and stuff are numbered apart.
        """
        DatasetCatalog.get(dataset_name)  # some loaders write the categories into the metadata
        metadata = MetadataCatalog.get(dataset_name)
        things = metadata.thing_dataset_id_to_contiguous_id.values()
        stuff = metadata.stuff_dataset_id_to_contiguous_id.values()
        if sorted([*things, *stuff]) != list(range(len(metadata.stuff_classes))):
            raise SetupError(
                [
                    f"'{dataset_name}' numbers things and stuff apart, expected one list of "
                    "categories: evaluate on the data set without _separated in its name"
                ]
            )
        self.dataset_name = dataset_name
        self.is_thing = np.isin(np.arange(len(metadata.stuff_classes)), list(things))
        self._found: dict[Any, Counts] = {}

    def reset(self) -> None:
        self._found = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for one, output in zip(inputs, outputs, strict=True):
            id_map, entries = output["panoptic_seg"]
            self._found[one["image_id"]] = matches(
                read_id_map(one["pan_seg_file_name"]),
                one["segments_info"],
                id_map.cpu().numpy(),
                entries,
                len(self.is_thing),
            )

    def evaluate(self) -> dict[str, Any] | None:
        """PQ, SQ, RQ of all categories, of things (`_th`) and of stuff (`_st`), in percent; groups
        that do not occur are left out. Only rank 0 gets them."""
        comm.synchronize()
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return None
        total = Counts(len(self.is_thing))
        for counts in {image: one for part in gathered for image, one in part.items()}.values():
            total.add(counts)
        everything = np.ones_like(self.is_thing)
        groups = {"": everything, "_th": self.is_thing, "_st": ~self.is_thing}
        found = {suffix: total.qualities(chosen) for suffix, chosen in groups.items()}
        results = {
            f"{name}{suffix}": value
            for suffix, one in found.items()
            if one is not None
            for name, value in one.items()
        }
        table = tabulate([results.values()], [*results], tablefmt="pipe", floatfmt=".2f")
        logger.info("Panoptic quality on '%s', percent\n%s", self.dataset_name, table)
        return {TASK: results}


def panoptic_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> PanopticEvaluator:
    """PQ."""
    return PanopticEvaluator(dataset_name)


def semantic_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> SemSegEvaluator:
    """mIoU; pixels of the ignored label do not count."""
    DatasetCatalog.get(dataset_name)
    return SemSegEvaluator(dataset_name, output_dir=output_folder, sem_seg_loading_fn=read_classes)


def read_classes(path: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """(H, W) of an image file; Detectron2's own reader raises on NumPy 2."""
    with PathManager.open(path, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)
