"""hotcoco returns what lvis returns on Pictograms, federated fields, frequencies and all."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.groups import CategoryAP, named_metrics
from ovd_d2.evaluation.protocols import LVIS_PROTOCOLS, select
from ovd_d2.pictograms.dataset import prepare
from ovd_d2.vocabulary import Categories


@pytest.fixture(scope="module", params=["train", "val"])
def dataset(request, tmp_path_factory) -> dict[str, Any]:
    """Train has categories that are annotated in part, val has all; both lack some altogether."""
    folder = tmp_path_factory.mktemp("pictograms")
    prepare(folder, full=False, workers=1, progress=False)
    name = f"pictograms_v1_mini_{request.param}"
    table = json.loads((folder / "pictograms_v1_mini" / f"{name}.json").read_text())
    return {**table, "split": request.param}


def noisy_detections(dataset: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Each object some times: shifted, at times under another name; scores have ties."""
    rng = np.random.default_rng(seed)
    sizes = {one["id"]: (one["height"], one["width"]) for one in dataset["images"]}
    ids = [one["id"] for one in dataset["categories"]]
    found = []
    for one in dataset["annotations"]:
        height, width = sizes[one["image_id"]]
        parts = mask_utils.frPyObjects(one["segmentation"], height, width)
        mask = mask_utils.decode(mask_utils.merge(parts))
        for _ in range(rng.integers(0, 4)):
            shifted = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
            rle = mask_utils.encode(np.asfortranarray(shifted))
            category = one["category_id"] if rng.uniform() < 0.7 else int(rng.choice(ids))
            found.append(
                {
                    "image_id": one["image_id"],
                    "category_id": category,
                    "score": round(float(rng.uniform(0.05, 1)), 2),
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
                }
            )
    return found


@pytest.mark.parametrize("protocol", LVIS_PROTOCOLS.values(), ids=LVIS_PROTOCOLS.keys())
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_engines_agree(dataset, protocol, iou_type):
    truth = GroundTruth(dataset, "lvis")
    counted = select(noisy_detections(dataset), protocol)
    names = [one["name"] for one in truth.categories]
    novel = [letter == "r" for letter in truth.frequencies]
    numbers = {}
    for engine in ("reference", "hotcoco"):
        precision = build_engine(engine).precision(truth, counted, iou_type)
        table = CategoryAP.from_precision(Categories(names, novel), precision[..., 0])
        numbers[engine] = (named_metrics(precision, truth.frequencies), table)
    (expected, by_category), (metrics, fast_by_category) = numbers.values()
    assert metrics == pytest.approx(expected, abs=1e-4, nan_ok=True)
    for values, fast_values in (
        (by_category.ap, fast_by_category.ap),
        (by_category.ap50, fast_by_category.ap50),
    ):
        np.testing.assert_allclose(fast_values, values, rtol=0, atol=1e-4)
        assert np.isfinite(values).sum() >= 10
    assert 5 < expected["AP"] < 95
    rare_too = dataset["split"] == "val"  # rare objects are not annotated in train
    defined = [name for name in ("APr", "APc", "APf") if np.isfinite(expected[name])]
    assert defined == (["APr", "APc", "APf"] if rare_too else ["APc", "APf"])
