"""Detectron2's catalogs, between tests."""

from __future__ import annotations

from detectron2.data import DatasetCatalog, MetadataCatalog


def forget(*names: str) -> None:
    """Takes data sets out of the catalogs; this package registers its own again at their next use.

    Then below what `DETECTRON2_DATASETS` says by that time.
    """
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
