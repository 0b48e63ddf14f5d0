"""What the page says of detections, and the files that can be downloaded."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ovd_d2.annotations_out import Found, coco_dataset
from ovd_d2.errors import SetupError
from ovd_d2.predict_files.outputs import records_of
from ovd_d2.prediction import Prediction
from ovd_d2.web.session import Photo, Session

SHOWN_NAMES = 8


def summary_of(session: Session, threshold: float) -> str:
    """What was found, or the best scores where nothing reaches the threshold; one sentence."""
    if session.photo is None or session.found is None:
        return "Drop an image to begin."
    found = session.found.from_score(threshold)
    if not len(found):
        return _nothing(session.found, threshold)
    counts = Counter(found.names).most_common()
    listed = [f"{count} {name}" for name, count in counts[:SHOWN_NAMES]]
    if more := len(counts) - len(listed):
        listed.append(f"and {more} more names")
    return f"{session.photo.name}: {len(found)} found ({', '.join(listed)})."


def _nothing(found: Prediction, threshold: float) -> str:
    scored = sorted(zip(found.best_scores, found.categories.names, strict=True), reverse=True)
    listed = ", ".join(f"{name} {score:.2f}" for score, name in scored[:3] if score > 0)
    best = f"The best scores: {listed}." if listed else "No name has any score here."
    return f"Nothing scores {threshold:g} or more. {best}"


def sentence_of(error: ValueError) -> str:
    """What is wrong, for a page."""
    return "; ".join(error.problems) if isinstance(error, SetupError) else str(error)


def detections_json(session: Session, threshold: float) -> str:
    """As tools/predict.py's detections.json; "" without an image."""
    if session.photo is None or session.found is None:
        return ""
    records = records_of(session.found.from_score(threshold), polygons=False)
    return _text({session.photo.name: records})


def coco_json(session: Session, threshold: float) -> str:
    """As tools/predict.py's coco.json; "" without an image."""
    if session.photo is None or session.found is None:
        return ""
    image = _found(session.photo, session.found.from_score(threshold))
    return _text(coco_dataset([image], session.found.categories.names))


def _found(photo: Photo, found: Prediction) -> Found:
    height, width = photo.size
    objects = records_of(found, polygons=True)
    return Found(file=photo.name, height=height, width=width, objects=objects)


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
