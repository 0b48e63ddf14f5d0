from __future__ import annotations

import builtins
import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovd_d2 import lvis_compat

IMAGES, CATEGORIES = (1, 2), (1, 2)
BOX = [10.0, 10.0, 40.0, 40.0]
ELSEWHERE = [60.0, 60.0, 30.0, 30.0]


def ground_truth() -> dict[str, Any]:
    """Category 1 (frequent) on image 1, category 2 (rare) on image 2, one box each."""
    corners = [10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0]
    return {
        "images": [
            {
                "id": image_id,
                "width": 100,
                "height": 100,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for image_id in IMAGES
        ],
        "categories": [
            {"id": category_id, "name": f"name {category_id}", "frequency": frequency}
            for category_id, frequency in zip(CATEGORIES, "fr", strict=True)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": number,
                "bbox": BOX,
                "area": 1600.0,
                "segmentation": [corners],
            }
            for number in (1, 2)
        ],
    }


def detections() -> list[dict[str, Any]]:
    """Category 1 found; category 2 found behind a better-scored false positive."""
    return [
        {"image_id": 1, "category_id": 1, "bbox": list(BOX), "score": 0.9},
        {"image_id": 2, "category_id": 2, "bbox": list(ELSEWHERE), "score": 0.9},
        {"image_id": 2, "category_id": 2, "bbox": list(BOX), "score": 0.8},
    ]


def evaluate(folder: Path) -> dict[str, float]:
    from lvis import LVIS, LVISEval, LVISResults

    path = folder / "ground_truth.json"
    path.write_text(json.dumps(ground_truth()))
    truth = LVIS(str(path))
    evaluator = LVISEval(truth, LVISResults(truth, detections()), "bbox")
    evaluator.run()
    return evaluator.get_results()


def test_the_fault_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, lvis has been repaired and the shim can go."""
    monkeypatch.setattr(importlib.import_module("lvis.eval"), "np", np)
    with pytest.raises(AttributeError, match=r"np\.float|no attribute 'float'"):
        evaluate(tmp_path)


def test_lvis_average_precision_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("lvis.eval"), "np", np)
    lvis_compat.patch_lvis()
    results = evaluate(tmp_path)
    # One of two detections is right at full recall: precision 1/2 everywhere for category 2.
    assert results["APf"] == pytest.approx(1.0)
    assert results["APr"] == pytest.approx(0.5)
    assert results["AP"] == pytest.approx(0.75)
    assert results["APc"] == -1


def test_numpy_itself_is_untouched() -> None:
    lvis_compat.patch_lvis()
    view = importlib.import_module("lvis.eval").np
    assert view.float is builtins.float
    assert view.cumsum is np.cumsum
    assert not hasattr(np, "float")
    with pytest.raises(AttributeError):
        _ = view.no_such_name


def test_patching_twice_changes_nothing() -> None:
    lvis_compat.patch_lvis()
    first = importlib.import_module("lvis.eval").np
    lvis_compat.patch_lvis()
    assert importlib.import_module("lvis.eval").np is first


def test_root_logger_keeps_its_handlers_and_level() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    added = logging.NullHandler()
    with lvis_compat._root_logger_kept():
        root.addHandler(added)
        root.setLevel(logging.CRITICAL)
    assert root.handlers == before
    assert root.level == level


def test_first_import_leaves_the_root_logger_alone() -> None:
    code = (
        "import logging, importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('compat', {lvis_compat.__file__!r})\n"
        "compat = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(compat)\n"
        "assert 'lvis' not in sys.modules\n"
        "compat.patch_lvis()\n"
        "assert 'lvis' in sys.modules\n"
        "assert logging.getLogger().handlers == [], logging.getLogger().handlers\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_missing_lvis_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lvis.eval", None)
    with pytest.raises(ImportError, match="pip install --no-deps lvis"):
        lvis_compat.patch_lvis()
