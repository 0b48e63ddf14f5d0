"""The predictor over image files: drawings and a list of detections."""

from __future__ import annotations

import glob
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from ovd_d2.data.augmentation import Resize, smallest_resize
from ovd_d2.data.image_faults import ImageError, printable, thin_fault
from ovd_d2.data.images import checked_image, read_header
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write, atomic_write_json
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.visualization import draw_instances
from ovd_d2.vocabulary import Categories

DETECTIONS = "detections.json"
_SAVE_PERIOD = 30.0  # seconds between two writings of it
_BAR_DELAY = 2.0  # seconds before a progress bar appears

Detections = dict[str, list[dict[str, Any]]]


class Predictions(NamedTuple):
    """What was found, and which files could not be used.

    Attributes:
        detections: file -> list of `name`, `novel`, `score` and `box` (XYXY, pixels of the image
            as its EXIF orientation turns it), best first; what `detections.json` holds.
        skipped: file -> what is wrong with it.
    """

    detections: Detections
    skipped: dict[str, str]


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Files for paths and glob patterns (`**` reaches sub-folders), in order, each once.

    Raises:
        SetupError: a pattern matches nothing, or two files would be written under one name.
    """
    files: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        # Path.glob takes no absolute patterns
        found = sorted(Path(one) for one in glob.glob(pattern, recursive=True))  # noqa: PTH207
        found = [one for one in found if not one.is_dir()] or _literal(pattern)
        if not found:
            hint = f"; it is a folder: '{Path(pattern) / '*'}'?" if Path(pattern).is_dir() else ""
            problems.append(f"--input: no file matches '{pattern}'{hint}")
        files.update(dict.fromkeys(found))
    stems = Counter(one.stem for one in files)
    problems += [
        f"--input: {count} files are called '{stem}'; their drawings would overwrite one another"
        for stem, count in stems.items()
        if count > 1
    ]
    if problems:
        raise SetupError(problems)
    return list(files)


def check_files(
    files: Sequence[Path], output: Path, resize: Resize | None = None
) -> dict[str, str]:
    """Looks at where results would go and at all headers; nothing is decoded or written.

    Args:
        files: images.
        output: folder of the results.
        resize: of the model's input (`smallest_resize`), to find images it leaves without a pixel.

    Returns:
        file -> what is wrong with it, for those that cannot be used.

    Raises:
        SetupError: a result would overwrite an input, `output` is no folder, or no file at all can
            be used.
    """
    if problems := _output_problems(files, output):
        raise SetupError(problems)
    bar = tqdm(files, "image headers", unit="image", delay=_BAR_DELAY)
    faults = {str(file): fault for file in bar if (fault := _header_fault(file, resize))}
    if files and len(faults) == len(files):
        raise SetupError([f"--input: {fault}" for fault in faults.values()])
    return faults


def predict_files(
    predictor: OpenVocabularyPredictor,
    files: Sequence[Path],
    output: Path,
    *,
    names: Sequence[str] | None = None,
    confidence_threshold: float = 0.25,
) -> Predictions:
    """Writes `<stem>.png` for each image and `detections.json` for all of them into `output`.

    A file that cannot be used is skipped; the others' results stand. `detections.json` is also
    written every half minute, and where an error or Ctrl-C is the end.

    Args:
        predictor: the detector.
        files: images.
        output: created if absent.
        names: what to look for; None for the configured vocabulary.
        confidence_threshold: detections scored below it are left out.

    Raises:
        SetupError: as :func:`check_files`, before anything is detected or written; or the names
            cannot be looked for.
    """
    resize = smallest_resize(predictor.cfg, is_train=False)
    skipped = check_files(files, output, resize)
    detections: Detections = {}
    due = time.monotonic() + _SAVE_PERIOD
    try:
        for file in tqdm(files, desc="detect", unit="image", disable=len(files) < 2):
            if str(file) in skipped:
                continue
            try:
                found = _predict_one(predictor, file, output, names, confidence_threshold)
            except ImageError as error:  # its header was sound
                skipped[str(file)] = str(error)
                continue
            detections[str(file)] = found
            if time.monotonic() >= due:
                _write(output, detections)
                due = time.monotonic() + _SAVE_PERIOD
    except BaseException:
        if detections:
            _write(output, detections)
        raise
    _write(output, detections)
    return Predictions(detections, skipped)


def _predict_one(
    predictor: OpenVocabularyPredictor,
    file: Path,
    output: Path,
    names: Sequence[str] | None,
    confidence_threshold: float,
) -> list[dict[str, Any]]:
    image = checked_image(file)
    found = predictor(image, names)
    instances, categories = found["instances"].to("cpu"), found["categories"]
    instances = instances[instances.scores >= confidence_threshold]
    drawn = draw_instances(image[:, :, ::-1], instances, categories.names, categories.novel)
    with atomic_write(output / f"{file.stem}.png") as temporary:
        Image.fromarray(drawn).save(temporary, format="PNG")
    return _as_records(instances, categories)


def skipped_message(skipped: Mapping[str, str], total: int) -> str:
    """All files that could not be used, one per line."""
    lines = "\n".join(f"  {fault}" for fault in skipped.values())
    return f"{len(skipped)} of {total} images could not be used:\n{lines}"


def _write(output: Path, detections: Detections) -> None:
    atomic_write_json(output / DETECTIONS, detections)


def _output_problems(files: Sequence[Path], output: Path) -> list[str]:
    there = next(one for one in (output, *output.absolute().parents) if one.exists())
    if not there.is_dir():
        return [f"--output: {there} is a file; name a folder"]
    # By what the system takes for one file: links and other spellings of a path count.
    inputs = {identity for file in files if (identity := _identity(file))}
    results = [*(output / f"{file.stem}.png" for file in files), output / DETECTIONS]
    lost = [one for one in results if _identity(one) in inputs]
    if not lost:
        return []
    return [
        f"--output: {len(lost)} of {len(results)} results (first: {printable(lost[0])}) would "
        f"overwrite the input; name another --output than {output}"
    ]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _header_fault(file: Path, resize: Resize | None) -> str | None:
    try:
        header = read_header(file)
    except ImageError as error:
        return str(error)
    fault = thin_fault(header.height, header.width, resize)
    return None if fault is None else str(ImageError(printable(file), fault))


def _literal(pattern: str) -> list[Path]:
    """A file whose name holds `[` or `*` is still meant when it exists."""
    return [Path(pattern)] if Path(pattern).is_file() else []


def _as_records(instances: Instances, categories: Categories) -> list[dict[str, Any]]:
    return [
        {
            "name": categories.names[k],
            "novel": categories.novel[k],
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
