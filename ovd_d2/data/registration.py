"""The data sets of this package and when they are registered: at their first use.

Other projects register some of the same names (Detic: `lvis_v1_train_norare` and three more), and
Detectron2 refuses to register a name twice. So `import ovd_d2` registers no data set: a name is
registered when this package looks it up for the first time, and only where it is still free.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.own import register_from_environment
from ovd_d2.data.paths import datasets_root
from ovd_d2.systems import systems

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """A data set that this package can register.

    Attributes:
        name: of the data set.
        json_file: annotation file, relative to the folder of all data sets.
        image_root: folder of the images, relative to the same folder.
        load: (path of the annotation file, path of the images, name) -> Detectron2's dicts.
        evaluator_type: metadata field that chooses the evaluator.
        metadata: further metadata fields. `official`: a public file as it is, whose boxes without
            area and outside of their images are only noted.
    """

    name: str
    json_file: str
    image_root: str
    load: Callable[[str, str, str], list[dict[str, Any]]]
    evaluator_type: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


_offered: dict[str, DataSet] = {}
_registered: set[str] = set()  # by this package
_reported: set[str] = set()  # registered by another project, and logged


def offer(data_set: DataSet) -> None:
    """Makes :func:`register_data_sets` register the data set where its name is free."""
    _offered[data_set.name] = data_set


def register(data_set: DataSet, root: Path) -> None:
    """Registers one data set below the folder `root`.

    Raises:
        AssertionError: Detectron2's, where the name is registered already.
    """
    json_file, image_root = (
        os.path.join(root, path) for path in (data_set.json_file, data_set.image_root)
    )
    load = partial(data_set.load, json_file, image_root, data_set.name)
    DatasetCatalog.register(data_set.name, load)
    MetadataCatalog.get(data_set.name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type=data_set.evaluator_type,
        **data_set.metadata,
    )
    _registered.add(data_set.name)


def register_data_sets(names: Sequence[str] | None = None) -> None:
    """Registers data sets of this package, and those of the yaml file `OVD_DATASETS`.

    All tools call it, and so does every function of this package that is given the name of a data
    set. Call it before Detectron2's own loader, or another program, looks up a name of this
    package. Calling it again changes nothing. `DETECTRON2_DATASETS` is read here.

    A name that another project has registered stays that project's; the log says so once if the
    annotation file is another one.

    Args:
        names: register these only; names that are not of this package or one of its systems are
            passed over. None: all.

    Raises:
        SetupError: the yaml file that `OVD_DATASETS` names has a problem.
    """
    root = datasets_root()
    if names is None or any(name not in _offered and name not in DatasetCatalog for name in names):
        _take_offers()
    for name in list(_offered) if names is None else names:
        if name not in _offered:
            continue
        if name not in DatasetCatalog:
            register(_offered[name], root)
        elif name not in _registered | _reported:
            _report_other(_offered[name], root)
    register_from_environment()


def known_names() -> list[str]:
    """All data sets that are registered, or will be at their first use; sorted."""
    _take_offers()
    return sorted({*DatasetCatalog.list(), *_offered})


def _take_offers() -> None:
    """Those of the systems, whose modules are imported at the first time."""
    for system in systems():
        for one in system.data_sets():
            offer(one)


def _report_other(data_set: DataSet, root: Path) -> None:
    """Logs that a name stands for the data set of another project."""
    _reported.add(data_set.name)
    own_file = os.path.join(root, data_set.json_file)
    file = MetadataCatalog.get(data_set.name).get("json_file", None)
    if file is None or os.path.abspath(file) != os.path.abspath(own_file):
        logger.info(
            "Data set '%s' is registered by another project, with annotation file %s, and stays "
            "so; this package would read %s",
            *(data_set.name, file, own_file),
        )
