"""The predictor over image files, folders and videos: drawings, detections and annotations.

What is found is noted file by file in `progress.jsonl`, so that a run that ended early goes on
where it was when the same command is given again.
"""

from __future__ import annotations

import glob
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ovd_d2.annotations_out import (
    Found,
    coco_dataset,
    coco_results,
    label_studio_tasks,
    polygons_of,
)
from ovd_d2.data.augmentation import Resize, smallest_resize
from ovd_d2.data.image_faults import ImageError, printable, thin_fault
from ovd_d2.data.images import checked_image, read_header
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write, atomic_write_json, fingerprint_json
from ovd_d2.prediction import Prediction
from ovd_d2.predictor import THRESHOLD, Names, OpenVocabularyPredictor
from ovd_d2.ranks import Ranks
from ovd_d2.tiles import predict_in_tiles
from ovd_d2.visualization import draw_instances
from ovd_d2.vocabulary import Vocabulary

DETECTIONS, PROGRESS, ALL_PROGRESS = "detections.json", "progress.jsonl", "progress*.jsonl"
DATASET, RESULTS, TASKS = "coco.json", "coco_results.json", "label_studio.json"
DRAWINGS, COCO, LABEL_STUDIO = "drawings", "coco", "label-studio"
OUTPUTS = (DRAWINGS, COCO, LABEL_STUDIO)  # beside detections.json
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # looked for in a folder
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_BAR_DELAY = 2.0  # seconds before a progress bar appears

Detections = dict[str, list[dict[str, Any]]]
_Noted = dict[str, Any]  # of an image: height, width, objects, best


@dataclass(frozen=True)
class Request:
    """What is looked for, and how.

    Attributes:
        names: see the predictor; None: the configured vocabulary.
        threshold: detections scored below it are left out.
        outputs: some of `OUTPUTS`.
        tile: side in px of the tiles that larger images are also looked at in; 0: none.
        overlap: of neighbouring tiles, a share of their side.
        every: of a video, every so-manieth frame.
        least_presence: names less likely than this to be in an image give nothing there.
        batch: images that are read before the model sees them, those of one padded size together;
            not where there are tiles.
    """

    names: Names | None = None
    threshold: float = THRESHOLD
    outputs: tuple[str, ...] = (DRAWINGS,)
    tile: int = 0
    overlap: float = 0.2
    every: int = 1
    least_presence: float = 0.0
    batch: int = 1


class Predictions(NamedTuple):
    """What was found, and which files could not be used.

    Attributes:
        detections: file, or file#frame of a video -> list of `name`, `novel`, `score` and `box`
            (XYXY, pixels of the image as its EXIF orientation turns it), and `presence` where the
            detector was calibrated; best first; what `detections.json` holds.
        skipped: file -> what is wrong with it.
        best_scores: name -> the best score seen, below the threshold, too.
    """

    detections: Detections
    skipped: dict[str, str]
    best_scores: dict[str, float]


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
        if not _is_video(file) and (fault := _header_fault(file, resize))
    }
    if files and len(faults) == len(files):
        raise SetupError([f"--input: {fault}" for fault in faults.values()])
    return faults


def predict_files(
    predictor: OpenVocabularyPredictor, files: Sequence[Path], output: Path, request: Request
) -> Predictions:
    """Writes `detections.json` and what else is asked for into `output`.

    A file that cannot be used is skipped; the others' results stand. An error or Ctrl-C leaves what
    is done in `detections.json` (of several processes: in their `progress*.jsonl`), and a second
    call with the same arguments goes on from there. The ranks of a process group share the files.

    Args:
        predictor: the detector.
        files: images and videos.
        output: created if absent.
        request: what is looked for.

    Raises:
        SetupError: as :func:`check_files`, before anything is detected or written; the names
            cannot be looked for; `output` holds the beginning of a run with other arguments;
            presence is asked for and was not calibrated.
    """
    ranks = Ranks()
    predictor.check_presence(request.least_presence)
    resize = smallest_resize(predictor.cfg, is_train=False)
    skipped = ranks.on_rank_0(lambda: check_files(files, output, resize))
    names = predictor.categories_of(request.names).names
    identity = _identity_of(predictor, request)
    done = ranks.on_rank_0(lambda: _joined_progress(output, identity))
    journal = _Journal(output / _progress(ranks.rank), identity, done)
    try:
        _detect(predictor, files[ranks.rank :: ranks.count], output, request, skipped, journal)
    except BaseException:
        journal.close()
        if journal.found and ranks.count == 1:
            _write(output, _in_order(journal.found, files), names, request)
        raise
    journal.close()
    parts = ranks.gather(lambda: (journal.found, skipped))
    found = _in_order({key: one for part, _ in parts for key, one in part.items()}, files)
    ranks.on_rank_0(lambda: _finish(output, found, names, request))
    detections = {key: _shown(one) for key, one in found.items()}
    faults = {key: fault for _, part in parts for key, fault in part.items()}
    return Predictions(detections, faults, _best_scores(found))


def _detect(
    predictor: OpenVocabularyPredictor,
    files: Sequence[Path],
    output: Path,
    request: Request,
    skipped: dict[str, str],
    journal: _Journal,
) -> None:
    """Puts what is found into the journal, and files whose header alone was sound into skipped."""
    frames = _frames(files, request.every, skipped, journal)
    known = None if any(map(_is_video, files)) else len(files)
    hidden = len(files) < 2 or journal.path.name != PROGRESS
    with tqdm(total=known, desc="detect", unit="image", disable=hidden) as bar:
        while together := list(itertools.islice(frames, 1 if request.tile else request.batch)):
            read = []
            for one in together:
                try:
                    read.append((one, _pixels(one, predictor)))
                except ImageError as error:  # its header was sound
                    skipped[one.key] = str(error)
            for (one, image), found in zip(read, _found(predictor, read, request), strict=True):
                journal.add(one.key, _noted(one, image, found, output, request))
            bar.update(len(together))


def _pixels(one: _Frame, predictor: OpenVocabularyPredictor) -> NDArray[np.uint8]:
    image = one.read()
    resize = smallest_resize(predictor.cfg, is_train=False)
    if fault := thin_fault(image.shape[0], image.shape[1], resize):  # of a video
        raise ImageError(printable(one.key), fault)
    return image


def _in_order(found: Mapping[str, _Noted], files: Sequence[Path]) -> dict[str, _Noted]:
    """As the files are, the frames of a video as they come."""
    place = {str(file): k for k, file in enumerate(files)}

    def order(key: str) -> tuple[int, str]:
        return place.get(key, place.get(key.rpartition("#")[0], len(place))), key

    return {key: found[key] for key in sorted(found, key=order)}


def _finish(
    output: Path, found: Mapping[str, _Noted], names: Sequence[str], request: Request
) -> None:
    _write(output, found, names, request)
    for one in output.glob(ALL_PROGRESS):
        one.unlink()


def _progress(rank: int) -> str:
    return PROGRESS if rank == 0 else f"progress-{rank}.jsonl"


def _joined_progress(output: Path, identity: str) -> dict[str, _Noted]:
    """What processes of an earlier run have noted; rank 0's file holds all of it afterwards."""
    journal = _Journal(output / PROGRESS, identity, {})
    others = [one for one in output.glob(ALL_PROGRESS) if one != journal.path]
    for one in others:
        journal.found |= _Journal(one, identity, {}).found
    if others:
        journal.begin()
        journal.close()
    for one in others:
        one.unlink()
    return journal.found


class _Frame(NamedTuple):
    """An image to look at.

    Attributes:
        key: in the results.
        stem: of its drawing.
        read: its pixels, (H, W, 3) uint8 BGR.
    """

    key: str
    stem: str
    read: Callable[[], NDArray[np.uint8]]


class _Journal:
    """What was found so far, a line of JSON per image; the first says what was looked for.

    Attributes:
        path: of the file.
        found: key of an image -> its line.
        done: what others have noted.
    """

    def __init__(self, path: Path, identity: str, done: Mapping[str, _Noted]) -> None:
        self.path = path
        self.done = done
        self.found: dict[str, _Noted] = {}
        self._identity = identity
        self._stream: IO[str] | None = None
        if path.is_file():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self.found or key in self.done

    def add(self, key: str, content: _Noted) -> None:
        if self._stream is None:
            self.begin()
        self.found[key] = content
        self._put({"key": key, **content})

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def begin(self) -> None:
        """The file anew: a line that was cut short goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as temporary, temporary.open("w", encoding="ascii") as stream:
            self._stream = stream
            self._put({"identity": self._identity})
            for key, content in self.found.items():
                self._put({"key": key, **content})
        self._stream = self.path.open("a", encoding="ascii")

    def _put(self, content: Mapping[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(content) + "\n")
        self._stream.flush()

    def _read(self) -> None:
        first, *rest = self.path.read_text(encoding="ascii").splitlines() or [""]
        if _parsed(first).get("identity") != self._identity:
            raise SetupError(
                [
                    f"--output: {self.path} is of a run with other names, another model or "
                    "other options that did not end: name another folder, or remove that file"
                ]
            )
        for line in map(_parsed, rest):
            if "key" in line:
                self.found[line.pop("key")] = line


def _parsed(line: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(line)
    except ValueError:  # cut short
        return {}
    return content


def _identity_of(predictor: OpenVocabularyPredictor, request: Request) -> str:
    names = request.names
    words = names.to_bytes().hex() if isinstance(names, Vocabulary) else repr(names)
    options = [
        *(request.threshold, request.least_presence, request.outputs),
        *(request.tile, request.overlap, request.every),
    ]
    model = [predictor.cfg.MODEL.WEIGHTS, predictor.cfg.MODEL.OVD.VOCABULARY]
    return fingerprint_json([words, options, model])


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def _frames(
    files: Sequence[Path], every: int, skipped: dict[str, str], done: _Journal
) -> Iterator[_Frame]:
    for file in files:
        if str(file) in skipped:
            continue
        if _is_video(file):
            yield from _frames_of(file, every, skipped, done)
        elif str(file) not in done:
            yield _Frame(str(file), file.stem, partial(checked_image, file))


def _frames_of(file: Path, every: int, skipped: dict[str, str], done: _Journal) -> Iterator[_Frame]:
    video = cv2.VideoCapture(str(file))
    try:
        number = 0
        while video.grab():
            key = f"{file}#{number:06d}"
            if number % every == 0 and key not in done:
                good, pixels = video.retrieve()
                if good:
                    stem = f"{file.stem}_{number:06d}"
                    yield _Frame(key, stem, partial(np.asarray, pixels))
                else:
                    skipped[key] = f"{printable(file)}: OpenCV cannot decode frame {number}"
            number += 1
        if number == 0:
            skipped[str(file)] = f"{printable(file)}: OpenCV reads no frame of this video"
    finally:
        video.release()


def _found(
    predictor: OpenVocabularyPredictor,
    read: Sequence[tuple[_Frame, NDArray[np.uint8]]],
    request: Request,
) -> list[Prediction]:
    names, threshold, least = request.names, request.threshold, request.least_presence
    images = [image for _, image in read]
    if not request.tile:
        return predictor(images, names, threshold, "BGR", least_presence=least)
    return [
        predict_in_tiles(
            *(predictor, image, names, threshold),
            side=request.tile,
            overlap=request.overlap,
            least_presence=least,
        )
        for image in images
    ]


def _noted(
    one: _Frame, image: NDArray[np.uint8], found: Prediction, output: Path, request: Request
) -> _Noted:
    """What the journal keeps of an image; it is drawn where that is asked for."""
    if DRAWINGS in request.outputs:
        categories = found.categories
        drawn = draw_instances(
            image[:, :, ::-1], found.instances, categories.names, categories.novel
        )
        with atomic_write(output / f"{one.stem}.png") as temporary:
            Image.fromarray(drawn).save(temporary, format="PNG")
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "objects": _as_records(found, polygons={COCO, LABEL_STUDIO} & {*request.outputs} != set()),
        "best": {
            name: round(score, 4)
            for name, score in zip(found.categories.names, found.best_scores, strict=True)
            if score > 0
        },
    }


def _shown(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in one.items() if key != "polygons"}
        for one in content["objects"]
    ]


def _best_scores(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    best: dict[str, float] = {}
    for one in found.values():
        for name, score in one["best"].items():
            best[name] = max(score, best.get(name, 0.0))
    return best


def nothing_message(
    best_scores: Mapping[str, float],
    threshold: float,
    least_presence: float = 0.0,
    *,
    shown: int = 5,
) -> str:
    """Why nothing was found, and which threshold would show something."""
    ranked = sorted(best_scores.items(), key=lambda one: -one[1])[:shown]
    if not ranked:
        return "Nothing was found: no name has any score in any image."
    listed = ", ".join(f"{name} {score:.3g}" for name, score in ranked)
    if ranked[0][1] >= threshold:
        return (
            f"No name is likely enough to be there (--least-presence {least_presence:.3g}). The "
            f"best scores seen: {listed}."
        )
    lower = int(1000 * ranked[0][1]) / 1000
    return (
        f"Nothing scores {threshold:g} or more. The best scores seen: {listed}; "
        f"--threshold {lower:g} would show the first."
    )


def skipped_message(skipped: Mapping[str, str], total: int) -> str:
    """All files that could not be used, one per line."""
    lines = "\n".join(f"  {fault}" for fault in skipped.values())
    return f"{len(skipped)} of {total} images could not be used:\n{lines}"


def _write(
    output: Path,
    found: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    request: Request,
) -> None:
    atomic_write_json(output / DETECTIONS, {key: _shown(one) for key, one in found.items()})
    if not {COCO, LABEL_STUDIO} & {*request.outputs}:
        return
    images = [
        Found(file=key, height=one["height"], width=one["width"], objects=one["objects"])
        for key, one in found.items()
    ]
    if COCO in request.outputs:
        dataset = coco_dataset(images, names)
        atomic_write_json(output / DATASET, dataset)
        atomic_write_json(output / RESULTS, coco_results(dataset))
    if LABEL_STUDIO in request.outputs:
        atomic_write_json(output / TASKS, label_studio_tasks(images, "ovd_d2"))


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


def _as_records(found: Prediction, *, polygons: bool) -> list[dict[str, Any]]:
    instances, categories = found.instances, found.categories
    records: list[dict[str, Any]] = [
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
    if instances.has("presence"):
        for record, presence in zip(records, instances.presence.tolist(), strict=True):
            record["presence"] = round(presence, 4)
    if polygons and instances.has("pred_masks"):
        for record, mask in zip(records, instances.pred_masks, strict=True):
            record["polygons"] = polygons_of(mask.numpy())
    return records
