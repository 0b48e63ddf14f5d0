"""Files, folders and videos: which there are, which cannot be used, and their pixels."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ovd_d2.data.augmentation import Resize
from ovd_d2.data.image_faults import ImageError, printable, thin_fault
from ovd_d2.data.images import checked_image, read_header
from ovd_d2.errors import SetupError
from ovd_d2.predict_files.outputs import DETECTIONS

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # looked for in a folder
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_BAR_DELAY = 2.0  # seconds before a progress bar appears


class Frame(NamedTuple):
    """An image to look at.

    Attributes:
        key: in the results.
        stem: of its drawing.
        read: its pixels, (H, W, 3) uint8 BGR.
    """

    key: str
    stem: str
    read: Callable[[], NDArray[np.uint8]]


def expand_inputs(patterns: Sequence[str], *, drawings: bool = True) -> list[Path]:
    """Files for paths, folders (the images in them) and glob patterns (`**` reaches sub-folders),
    in order, each once.

    Args:
        patterns: what the user names.
        drawings: each gets one, under its name without suffix.

    Raises:
        SetupError: a pattern matches nothing, or two drawings would have one name.
    """
    files: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        found = _of_folder(Path(pattern)) if Path(pattern).is_dir() else _matching(pattern)
        if not found:
            what = "no image in the folder" if Path(pattern).is_dir() else "no file matches"
            problems.append(f"--input: {what} '{pattern}'")
        files.update(dict.fromkeys(found))
    stems = Counter(one.stem for one in files) if drawings else {}
    problems += [
        f"--input: {count} files are called '{stem}'; their drawings would overwrite one another"
        for stem, count in stems.items()
        if count > 1
    ]
    if problems:
        raise SetupError(problems)
    return list(files)


def _of_folder(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.suffix.lower() in (*IMAGES, *VIDEOS))


def _matching(pattern: str) -> list[Path]:
    # Path.glob takes no absolute patterns
    found = sorted(Path(one) for one in glob.glob(pattern, recursive=True))  # noqa: PTH207
    return [one for one in found if not one.is_dir()] or _literal(pattern)


def _literal(pattern: str) -> list[Path]:
    """A file whose name holds `[` or `*` is still meant when it exists."""
    return [Path(pattern)] if Path(pattern).is_file() else []


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
    faults = {
        str(file): fault
        for file in bar
        if not is_video(file) and (fault := _header_fault(file, resize))
    }
    if files and len(faults) == len(files):
        raise SetupError([f"--input: {fault}" for fault in faults.values()])
    return faults


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


def is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def frames(
    files: Sequence[Path], every: int, skipped: dict[str, str], done: Container[str]
) -> Iterator[Frame]:
    """What is left to look at, file after file.

    Args:
        files: images and videos.
        every: of a video, every so-manieth frame.
        skipped: files that cannot be used; what turns out to be so is added, with the reason.
        done: keys of what has been looked at.
    """
    for file in files:
        if str(file) in skipped:
            continue
        if is_video(file):
            yield from _frames_of(file, every, skipped, done)
        elif str(file) not in done:
            yield Frame(str(file), file.stem, partial(checked_image, file))


def _frames_of(
    file: Path, every: int, skipped: dict[str, str], done: Container[str]
) -> Iterator[Frame]:
    video = cv2.VideoCapture(str(file))
    try:
        number = 0
        while video.grab():
            key = f"{file}#{number:06d}"
            if number % every == 0 and key not in done:
                good, pixels = video.retrieve()
                if good:
                    stem = f"{file.stem}_{number:06d}"
                    yield Frame(key, stem, partial(np.asarray, pixels))
                else:
                    skipped[key] = f"{printable(file)}: OpenCV cannot decode frame {number}"
            number += 1
        if number == 0:
            skipped[str(file)] = f"{printable(file)}: OpenCV reads no frame of this video"
    finally:
        video.release()
