"""What the detections of one image cost under fixed AP (docs/evaluation.md), LVIS-sized.

OMP_NUM_THREADS=1 python -m ovd_d2.benchmark.fixed_ap --limits 300 1000 3000 --size 480 640
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.evaluation.evaluator_mixin import detections_to_coco_json
from ovd_d2.modeling import BoxMasks
from ovd_d2.modeling.detection import select_detections

REGIONS, NAMES, NMS, SIDE = 300, 1203, 0.6, 28  # configs/vild_r50.yaml; SIDE of predicted masks


def detections(limit: int, height: int, width: int) -> Instances:
    """Of random regions and scores, none below the threshold of 0."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([width, height])
    corner = torch.rand(REGIONS, 2, generator=generator) * size * 0.8
    far = corner + torch.rand(REGIONS, 2, generator=generator) * size * 0.3 + 10
    scores = torch.rand(REGIONS, NAMES, generator=generator)
    return select_detections(
        [torch.cat([corner, far], dim=1)],
        [scores],
        [(height, width)],
        score_threshold=0.0,
        nms_threshold=NMS,
        limit=limit,
    )[0]


def round_masks(count: int) -> Tensor:
    """(count, SIDE, SIDE) probabilities of discs whose edges are a little rough."""
    line = torch.linspace(-1, 1, SIDE)
    disc = (1 - line[:, None] ** 2 - line[None] ** 2).clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    return 0.9 * disc + 0.05 * torch.rand(count, SIDE, SIDE, generator=generator)


def cost(limit: int, height: int, width: int, most_masks: int = 20_000) -> dict[str, float]:
    """Number of detections, MB of their masks, processor seconds of selecting and of encoding.

    Args:
        limit: detections per image; negative: all.
        height, width: of the image, pixels.
        most_masks: of more detections the masks are not made.
    """
    found, selecting = _timed(lambda: detections(limit, height, width))
    result = {
        "detections": len(found),
        "masks_mb": len(found) * 4 * SIDE**2 / 1e6,
        "select_s": selecting,
    }
    if len(found) > most_masks:
        return result
    found.pred_masks = BoxMasks(round_masks(len(found)), found.pred_boxes.tensor, found.image_size)
    _, result["encode_s"] = _timed(lambda: detections_to_coco_json(found, 1))
    return result


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--limits", type=int, nargs="+", default=[300, 1000, 3000, -1])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], help="height and width")
    args = parser.parse_args()
    columns = ("detections", "masks_mb", "select_s", "encode_s")
    print("| limit | detections | masks, MB | selecting, s | encoding, s |")
    print("|---:|---:|---:|---:|---:|")
    for limit in args.limits:
        row = cost(limit, *args.size)
        cells = [f"{row[one]:,.2f}" if one in row else "-" for one in columns[1:]]
        print(f"| {limit} | {row['detections']:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
