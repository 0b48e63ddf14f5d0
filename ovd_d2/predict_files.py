"""The predictor over image files: pictures and a list of detections."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write, atomic_write_json
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.visualization import draw_instances

logger = logging.getLogger(__name__)


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Files for paths and glob patterns (`**` reaches sub-folders), in order, each once.

    Raises:
        SetupError: a pattern matches nothing, or two files would be written under one name.
    """
    files: dict[Path, None] = {}
    unmatched = []
    for pattern in patterns:
        # Path.glob takes no absolute patterns
        found = sorted(Path(one) for one in glob.glob(pattern, recursive=True))  # noqa: PTH207
        found = [one for one in found if one.is_file()] or _literal(pattern)
        if not found:
            unmatched.append(pattern)
        files.update(dict.fromkeys(found))
    problems = [f"--input: no file matches '{pattern}'" for pattern in unmatched]
    stems = Counter(one.stem for one in files)
    problems += [
        f"--input: {count} files are called '{stem}'; their pictures would overwrite one another"
        for stem, count in stems.items()
        if count > 1
    ]
    if problems:
        raise SetupError(problems)
    return list(files)


def predict_files(
    predictor: OpenVocabularyPredictor,
    files: Sequence[Path],
    output: Path,
    *,
    names: Sequence[str] | None = None,
    confidence_threshold: float = 0.25,
) -> dict[str, list[dict[str, Any]]]:
    """Writes `<stem>.png` for each image and `detections.json` for all of them into `output`.

    Args:
        predictor: the detector.
        files: images; one that cannot be read is an error before anything is detected in it.
        output: created if absent.
        names: what to look for; None for the configured vocabulary.
        confidence_threshold: detections scored below it are left out.

    Returns:
        What `detections.json` holds: file -> list of `name`, `novel`, `score` and `box` (XYXY,
        pixels), best first.
    """
    detections: dict[str, list[dict[str, Any]]] = {}
    for file in tqdm(files, desc="detect", unit="image", disable=len(files) < 2):
        try:
            image = read_image(str(file), "BGR")
        except (OSError, UnidentifiedImageError) as error:
            raise SetupError([f"--input: {file} is not an image ({error})"]) from error
        instances = predictor(image, names)["instances"].to("cpu")
        instances = instances[instances.scores >= confidence_threshold]
        drawn = draw_instances(image[:, :, ::-1], instances, predictor.names, predictor.is_novel)
        with atomic_write(output / f"{file.stem}.png") as temporary:
            Image.fromarray(drawn).save(temporary, format="PNG")
        detections[str(file)] = _as_records(instances, predictor)
    atomic_write_json(output / "detections.json", detections)
    return detections


def _literal(pattern: str) -> list[Path]:
    """A file whose name holds `[` or `*` is still meant when it exists."""
    return [Path(pattern)] if Path(pattern).is_file() else []


def _as_records(instances: Instances, predictor: OpenVocabularyPredictor) -> list[dict[str, Any]]:
    return [
        {
            "name": predictor.names[k],
            "novel": predictor.is_novel[k],
            "score": round(score, 4),
            "box": [round(value, 1) for value in box],
        }
        for k, score, box in zip(
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            instances.pred_boxes.tensor.tolist(),
            strict=True,
        )
    ]
