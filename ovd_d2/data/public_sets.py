"""What an open vocabulary needs to know of public data sets beyond their metadata.

It is kept here and not written into the metadata, which belongs to whoever registers the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.data import MetadataCatalog

from ovd_d2.data.ov_coco import BASE_CLASSES, TRAIN_SET, VAL_SET

OBJECTS365_V1 = "objects365_v1_train"
OBJECTS365_V2 = ("objects365_v2_train", "objects365_v2_val")
# Detectron2 registers these.
VOC_SETS = (
    *(f"voc_2007_{split}" for split in ("trainval", "train", "val", "test")),
    *(f"voc_2012_{split}" for split in ("trainval", "train", "val")),
)

# Spellings: the data set's name of a category -> one that a text encoder knows.
_VOC = {
    "boxes_only": True,
    "spellings": {
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "tvmonitor": "tv monitor",
    },
}
_OBJECTS365_V1 = {
    "boxes_only": True,
    "spellings": {
        "hamimelon": "hami melon",
        "hotair balloon": "hot air balloon",
        "pine apple": "pineapple",
        "tissue ": "tissue",
    },
}
_OBJECTS365_V2 = {
    "boxes_only": True,
    "spellings": {
        "Moniter/TV": "Monitor/TV",
        "Bakset": "Basket",
        "Ballon": "Balloon",
        "Dinning Table": "Dining Table",
        "Billards": "Billiards",
        "Cigar/Cigarette ": "Cigar/Cigarette",
        "Extention Cord": "Extension Cord",
        "Hotair ballon": "Hot air balloon",
        "Hamimelon": "Hami melon",
        "Mushroon": "Mushroom",
        "Tape Measur/ Ruler": "Tape Measure/Ruler",
        "Campel": "Camel",
        "Formula 1 ": "Formula 1",
        "Buttefly": "Butterfly",
        "Noddles": "Noodles",
        "Table Teniis paddle": "Table Tennis paddle",
        "Table Tennis ": "Table Tennis",
    },
}
_KNOWN: dict[str, Mapping[str, Any]] = {
    **dict.fromkeys(VOC_SETS, _VOC),
    TRAIN_SET: {"base_classes": list(BASE_CLASSES)},
    VAL_SET: {"base_classes": list(BASE_CLASSES)},
    OBJECTS365_V1: _OBJECTS365_V1,
    **dict.fromkeys(OBJECTS365_V2, _OBJECTS365_V2),
}


def dataset_field(dataset_name: str, field: str, default: Any = None) -> Any:
    """A metadata field of a data set, or what this package knows where the metadata lacks it.

    Args:
        dataset_name: as registered.
        field: "base_classes" (list of names), "spellings" (dict from the data set's names to ones
            that a text encoder knows) or "boxes_only" (bool: it has no masks).
        default: where neither says anything.
    """
    known = _KNOWN.get(dataset_name, {})
    return MetadataCatalog.get(dataset_name).get(field, known.get(field, default))
