"""The predictor over files, one after another or in batches, in one process or several."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ovd_d2.data.augmentation import smallest_resize
from ovd_d2.data.image_faults import ImageError, printable, thin_fault
from ovd_d2.files import fingerprint_json
from ovd_d2.predict_files.inputs import Frame, check_files, frames, is_video
from ovd_d2.predict_files.journal import (
    ALL_PROGRESS,
    PROGRESS,
    Journal,
    joined_progress,
    progress_file,
)
from ovd_d2.predict_files.outputs import (
    DRAWINGS,
    Noted,
    best_scores_of,
    noted,
    shown_records,
    write,
)
from ovd_d2.prediction import Prediction
from ovd_d2.predictor import THRESHOLD, Names, OpenVocabularyPredictor
from ovd_d2.ranks import Ranks
from ovd_d2.tiles import predict_in_tiles
from ovd_d2.vocabulary import Vocabulary

Detections = dict[str, list[dict[str, Any]]]


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
    predictor.check_presence(request.least_presence, request.names)
    resize = smallest_resize(predictor.cfg, is_train=False)
    skipped = ranks.on_rank_0(lambda: check_files(files, output, resize))
    names = predictor.categories_of(request.names).names
    identity = _identity_of(predictor, request)
    done = ranks.on_rank_0(lambda: joined_progress(output, identity))
    journal = Journal(output / progress_file(ranks.rank), identity, done)
    try:
        _detect(predictor, files[ranks.rank :: ranks.count], output, request, skipped, journal)
    except BaseException:
        journal.close()
        if journal.found and ranks.count == 1:
            write(output, _in_order(journal.found, files), names, request.outputs)
        raise
    journal.close()
    parts = ranks.gather(lambda: (journal.found, skipped))
    found = _in_order({key: one for part, _ in parts for key, one in part.items()}, files)
    ranks.on_rank_0(lambda: _finish(output, found, names, request))
    detections = {key: shown_records(one) for key, one in found.items()}
    faults = {key: fault for _, part in parts for key, fault in part.items()}
    return Predictions(detections, faults, best_scores_of(found))


def _detect(
    predictor: OpenVocabularyPredictor,
    files: Sequence[Path],
    output: Path,
    request: Request,
    skipped: dict[str, str],
    journal: Journal,
) -> None:
    """Puts what is found into the journal, and files whose header alone was sound into skipped."""
    waiting = frames(files, request.every, skipped, journal)
    known = None if any(map(is_video, files)) else len(files)
    hidden = len(files) < 2 or journal.path.name != PROGRESS
    with tqdm(total=known, desc="detect", unit="image", disable=hidden) as bar:
        while together := list(itertools.islice(waiting, 1 if request.tile else request.batch)):
            read = []
            for one in together:
                try:
                    read.append((one, _pixels(one, predictor)))
                except ImageError as error:  # its header was sound
                    skipped[one.key] = str(error)
            for (one, image), found in zip(read, _found(predictor, read, request), strict=True):
                drawing = output / f"{one.stem}.png"
                journal.add(one.key, noted(image, found, drawing, request.outputs))
            bar.update(len(together))


def _pixels(one: Frame, predictor: OpenVocabularyPredictor) -> NDArray[np.uint8]:
    image = one.read()
    resize = smallest_resize(predictor.cfg, is_train=False)
    if fault := thin_fault(image.shape[0], image.shape[1], resize):  # of a video
        raise ImageError(printable(one.key), fault)
    return image


def _found(
    predictor: OpenVocabularyPredictor,
    read: Sequence[tuple[Frame, NDArray[np.uint8]]],
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


def _in_order(found: Mapping[str, Noted], files: Sequence[Path]) -> dict[str, Noted]:
    """As the files are, the frames of a video as they come."""
    place = {str(file): k for k, file in enumerate(files)}

    def order(key: str) -> tuple[int, str]:
        return place.get(key, place.get(key.rpartition("#")[0], len(place))), key

    return {key: found[key] for key in sorted(found, key=order)}


def _finish(
    output: Path, found: Mapping[str, Noted], names: Sequence[str], request: Request
) -> None:
    write(output, found, names, request.outputs)
    for one in output.glob(ALL_PROGRESS):
        one.unlink()


def _identity_of(predictor: OpenVocabularyPredictor, request: Request) -> str:
    names = request.names
    words = names.to_bytes().hex() if isinstance(names, Vocabulary) else repr(names)
    options = [
        *(request.threshold, request.least_presence, request.outputs),
        *(request.tile, request.overlap, request.every),
    ]
    model = [predictor.cfg.MODEL.WEIGHTS, predictor.cfg.MODEL.OVD.VOCABULARY]
    return fingerprint_json([words, options, model])
