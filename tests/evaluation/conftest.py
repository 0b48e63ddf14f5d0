from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`register(name, dataset, evaluator_type, **metadata)` -> path of the annotation file."""
    registered = []

    def add(name: str, dataset: dict[str, Any], evaluator_type: str, **metadata: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataset))
        DatasetCatalog.register(name, list)
        registered.append(name)
        MetadataCatalog.get(name).set(
            json_file=str(path), evaluator_type=evaluator_type, **metadata
        )
        return path

    yield add
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
