"""OV-COCO: COCO 2017 with 48 base and 17 novel categories, the other 15 left out.

The split is that of Bansal et al., "Zero-Shot Object Detection" (ECCV 2018), in the form in which
OVR-CNN (CVPR 2021) and all later work use it: novel categories unannotated in training, one
classifier over all 65 at test time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from ovd_d2.data.annotation_files import keep_annotations, read_annotations, write_annotations

# The names of the field; Detic registers them, too, with other files.
TRAIN_SET = "coco_zeroshot_train_oriorder"
VAL_SET = "coco_generalized_zeroshot_val"
FOLDER = "coco/zero-shot"
TRAIN_FILE = "instances_train2017_seen_2.json"
TRAIN_ALL_FILE = "instances_train2017_all_2.json"
VAL_FILE = "instances_val2017_all_2.json"

# In the order of COCO's ids.
BASE_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird"),
    *("horse", "sheep", "bear", "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee"),
    *("skis", "kite", "surfboard", "bottle", "fork", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed", "toilet"),
    *("tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book"),
    *("clock", "vase", "toothbrush"),
)
NOVEL_CLASSES = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard"),
    *("skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors"),
)


def build_ov_coco(root: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes the three files of the split from COCO's official ones.

    All of them list the 65 categories in COCO's order. The training files keep every image, also
    those without base annotation: distillation learns from what is unnamed in them, and
    `DATALOADER.FILTER_EMPTY_ANNOTATIONS True` leaves them out. The validation file keeps the
    images that show one of the 65 categories, as all published numbers do.

    Args:
        root: folder of all data sets; reads `coco/annotations/instances_{train,val}2017.json`.
        overwrite: replace files that exist.

    Raises:
        FileNotFoundError, FileExistsError: of the files above and below.
        ValueError: a file lacks categories of the split.
    """
    folder = root / FOLDER
    targets = [folder / name for name in (TRAIN_FILE, TRAIN_ALL_FILE, VAL_FILE)]
    existing = [str(path) for path in targets if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{', '.join(existing)} exist; --overwrite replaces them")
    sources = {
        split: root / "coco" / "annotations" / f"instances_{split}2017.json"
        for split in ("train", "val")
    }
    with tqdm(total=len(targets), desc="OV-COCO", unit="file") as bar:
        train = _only_split_categories(read_annotations(sources["train"]), sources["train"])
        names = (BASE_CLASSES, BASE_CLASSES + NOVEL_CLASSES)
        for target, kept in zip(targets[:2], names, strict=True):
            write_annotations(target, keep_annotations(train, _ids(train, kept)), overwrite=True)
            bar.update()
        val = _only_split_categories(read_annotations(sources["val"]), sources["val"])
        annotated_only = keep_annotations(
            val, _ids(val, names[1]), keep_image=lambda image_id, annotated: image_id in annotated
        )
        write_annotations(targets[2], annotated_only, overwrite=True)
        bar.update()
    return targets


def _only_split_categories(dataset: dict[str, Any], path: Path) -> dict[str, Any]:
    wanted = {*BASE_CLASSES, *NOVEL_CLASSES}
    categories = [one for one in dataset["categories"] if one["name"] in wanted]
    missing = sorted(wanted - {one["name"] for one in categories})
    if missing:
        raise ValueError(
            f"{path}: expected COCO's 80 categories, it lacks {len(missing)} of the split's 65: "
            f"{', '.join(missing[:5])}"
        )
    return {**dataset, "categories": sorted(categories, key=lambda one: one["id"])}


def _ids(dataset: dict[str, Any], names: tuple[str, ...]) -> list[int]:
    return [one["id"] for one in dataset["categories"] if one["name"] in set(names)]
