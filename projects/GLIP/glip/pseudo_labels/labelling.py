"""One image's boxes by the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ovd_d2.projects.glip.grounding import CAPTION, SPANS
from ovd_d2.projects.glip.pseudo_labels.captions import CaptionedImage
from ovd_d2.projects.glip.pseudo_labels.shards import LabelRun
from ovd_d2.ranks import Ranks

# An image -> detections in it, `pred_boxes`, `scores` and `pred_classes`: places of its phrases.
Detector = Callable[[CaptionedImage], Instances]
_DECIMALS = 2  # of boxes, pixels


def labels_of(
    image: CaptionedImage, found: Instances, threshold: float, phrase_threshold: float = 1.0
) -> dict[str, Any]:
    """The entry of an image: its caption, and the boxes that score above the threshold.

    Args:
        image: with its caption.
        found: in it, of its phrases.
        threshold: least score of any box.
        phrase_threshold: least score of the best box of a phrase, which the caption says is there;
            above `threshold` it changes nothing.

    Raises:
        ValueError: the teacher found a phrase that the image does not have.
    """
    boxes = found.pred_boxes.tensor.cpu().numpy().astype(np.float64)
    scores, classes = found.scores.cpu().tolist(), found.pred_classes.cpu().tolist()
    if classes and not 0 <= min(classes) <= max(classes) < len(image.phrases):
        raise ValueError(
            f"{image.file_name}: the teacher found phrase {max(classes)} of {len(image.phrases)}"
        )
    pairs = list(zip(scores, classes, strict=True))
    best = {label: max(one for one, k in pairs if k == label) for label in set(classes)}
    annotations = [
        {
            "bbox": [round(float(one), _DECIMALS) for one in (*box[:2], *(box[2:] - box[:2]))],
            "score": round(score, 4),
            SPANS: [list(span) for span in image.phrases[label]],
        }
        for box, score, label in zip(boxes, scores, classes, strict=True)
        if score > threshold or best[label] == score > phrase_threshold
    ]
    keys = ("image_id", "file_name", "height", "width", CAPTION)
    return {**{key: getattr(image, key) for key in keys}, "annotations": annotations}


def label_images(
    images: Sequence[CaptionedImage], detector: Detector, run: LabelRun, *, progress: bool = True
) -> dict[str, Any] | None:
    """Labels what is not labelled yet, each rank its shards; then joins all.

    Args:
        images: all of them, the same on all ranks.
        detector: the teacher.
        run: where labels go.
        progress: show a bar.

    Returns:
        Statistics, on rank 0.
    """
    ranks = Ranks()
    ranks.on_rank_0(run.start)

    def work() -> None:
        missing = run.missing(ranks.rank, ranks.count)
        for number in tqdm(missing, desc="labelling", unit="shard", disable=not progress):
            chosen = [images[k] for k in run.images_of_shard(number)]
            least = (run.settings.threshold, run.settings.phrase_threshold)
            run.write(number, [labels_of(one, detector(one), *least) for one in chosen])

    ranks.gather(work)
    statistics: dict[str, Any] | None = ranks.on_rank_0(run.join)
    return statistics if ranks.rank == 0 else None
