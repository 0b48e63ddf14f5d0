"""Image files: what is wrong with them, found before a run, and their pixels as training sees them.

Reading follows `detectron2.data.detection_utils.read_image`: the EXIF orientation is applied, since
training applies it and boxes are in the coordinates of what training shows; grey, palette, CMYK and
YCbCr become RGB; 16-bit colour loses its low bytes; transparency is dropped; of several frames the
first counts. What Detectron2 would turn into a wrong image without a word (grey of more than 8
bits, clipped to white) is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from detectron2.data.detection_utils import (
    _apply_exif_orientation,
    convert_PIL_to_numpy,
    read_image,
)
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from tqdm import tqdm

from ovd_d2.data.augmentation import Resize
from ovd_d2.data.image_faults import KINDS, Fault, Header, ImageError, printable, size_fault
from ovd_d2.data.image_memory import ImageMemory, Sound
from ovd_d2.data.problems import Problem
from ovd_d2.workers import available_cores, closing, process_pool

Entry = Mapping[str, Any]
Result = TypeVar("Result")

_EXIF_ORIENTATION = 274
_EXIF_QUARTER_TURNS = {5, 6, 7, 8}  # orientations that swap height and width
_EXIF_ERRORS = (struct.error, SyntaxError, ValueError, TypeError, KeyError, OSError)
_DEEP_MODES = ("I", "F")  # Pillow's "I;16", "I;16B", "I", "F": grey of 16 or 32 bits
_PNG_TEXTS = {b"eXIf", b"iTXt", b"zTXt", b"tEXt"}  # all of them may hold an orientation
_PNG_FIRST_CHUNK = 8  # bytes before it
_HEAD = 16  # bytes of a file that is no image, shown in the message
_BAR_DELAY = 2.0  # seconds before a progress bar appears
_STATS, _HEADERS, _DECODED = 256, 64, 8  # files per task of a worker
_STAT_THREADS = 16  # they wait for network folders
_MOST_WORKERS = 32
_ALONE = 4  # as few chunks are not worth worker processes
_OTHERS = 3  # further files named in a message


class _File(NamedTuple):
    """An image file that is there: its path to open, its absolute path, size and times."""

    path: str
    absolute: str
    status: os.stat_result


def image_problems(
    entries: Sequence[Entry],
    *,
    decode: bool,
    source: str,
    memory: Path | None = None,
    progress: bool = True,
    resize: Resize | None = None,
) -> list[Problem]:
    """What is wrong with the image files of a data set, one problem for each kind of fault.

    The header of every file is read, by worker processes: missing, empty and unreadable files, grey
    of more than 8 bits, sizes other than annotated, EXIF orientations, images beyond Pillow's limit
    (between its warning and its limit they can be trained on, and are no problem).

    Args:
        entries: dicts with `file_name`, `image_id` and, where known, `height` and `width`.
        decode: also read all data of every file, which finds those that are cut short.
        source: the annotation file, for the messages.
        memory: a file (`ovd_d2.data.image_memory.default_memory`) of what was found sound before;
            files of the same size and time are not read again. None: all are read.
        progress: show progress bars.
        resize: the strongest reduction that images meet (`smallest_resize`), to find those that it
            leaves without a pixel; None does not look.
    """
    names = list(dict.fromkeys(str(entry["file_name"]) for entry in entries))
    found = look_at_images(names, decode=decode, memory=memory, progress=progress)
    faults: dict[str, list[tuple[Entry, Fault]]] = {kind: [] for kind in KINDS}
    for entry in entries:
        result = found[str(entry["file_name"])]
        fault = result if isinstance(result, Fault) else size_fault(entry, result, resize)
        if fault is not None:
            faults[fault.kind].append((entry, fault))
    return [_problem(kind, ones, len(entries), source) for kind, ones in faults.items() if ones]


def _problem(kind: str, ones: list[tuple[Entry, Fault]], total: int, source: str) -> Problem:
    entry, fault = ones[0]
    found = fault.found
    if len(ones) > 1:
        others = [printable(str(one["file_name"])) for one, _ in ones[1 : 1 + _OTHERS]]
        rest = len(ones) - 1 - len(others)
        found += f" (also {', '.join(others)}{f' and {rest:,} more' if rest else ''})"
    return Problem(
        file=source,
        key=KINDS[kind].key,
        what=KINDS[kind].many,
        count=len(ones),
        total=total,
        first=f"{printable(str(entry['file_name']))}, image id {entry['image_id']!r}",
        expected=KINDS[kind].expected,
        found=found,
        fix=KINDS[kind].set_fix or KINDS[kind].fix,
    )


def look_at_images(
    names: Sequence[str], *, decode: bool, memory: Path | None = None, progress: bool = True
) -> dict[str, Header | Fault]:
    """Each file's header or its fault; what the memory knows is not read.

    Args:
        names: files, each once.
        decode, memory, progress: as of :func:`image_problems`.
    """
    sound = ImageMemory(memory)
    bar = partial(_bar, progress=progress)
    found: dict[str, Header | Fault] = {}
    files: dict[str, _File] = {}
    for name, there in bar(_stat_all(names), "find images", len(names)):
        if isinstance(there, Fault):
            found[name] = there
        else:
            files[name] = there
    known = {name: sound.find(file.absolute, file.status) for name, file in files.items()}
    found.update({name: _header_of(one) for name, one in known.items() if one is not None})
    try:
        unread = [name for name, one in known.items() if one is None]
        paths = [files[name].path for name in unread]
        with contextlib.closing(_by_processes(_header_or_fault, paths, _HEADERS)) as headers:
            seen = bar(headers, "image headers", len(unread))
            for name, header in zip(unread, seen, strict=True):
                found[name] = header
                _remember(sound, files[name], header, decoded=0)
        if decode:
            done = {name for name, one in known.items() if one is not None and one.decoded}
            _decode_all(files, done, found, sound, progress)
    finally:
        sound.save()
    return found


def _decode_all(
    files: Mapping[str, _File],
    done: set[str],
    found: dict[str, Header | Fault],
    memory: ImageMemory,
    progress: bool,
) -> None:
    """Puts a fault in the place of the header of each image that cannot be decoded."""
    left = [name for name in files if name not in done and isinstance(found[name], Header)]
    paths = [files[name].path for name in left]
    with contextlib.closing(_by_processes(_decoding_fault, paths, _DECODED)) as faults:
        seen = _bar(faults, "decode images", len(left), progress)
        for name, fault in zip(left, seen, strict=True):
            if fault is not None:
                found[name] = fault
            _remember(memory, files[name], found[name], decoded=1)


def _remember(memory: ImageMemory, file: _File, found: Header | Fault, decoded: int) -> None:
    if isinstance(found, Header):
        size, time = file.status.st_size, file.status.st_mtime_ns
        height, width, turned = found
        memory.add(file.absolute, Sound(size, time, height, width, int(turned), decoded))


def _header_of(sound: Sound) -> Header:
    return Header(sound.height, sound.width, bool(sound.turned))


def _stat_all(names: Sequence[str]) -> Iterator[tuple[str, _File | Fault]]:
    """By threads, since a network folder answers one question in a millisecond."""
    chunks = [names[k : k + _STATS] for k in range(0, len(names), _STATS)]
    with closing(ThreadPoolExecutor(_STAT_THREADS)) as pool:
        for chunk, results in zip(chunks, pool.map(_stat_chunk, chunks), strict=True):
            yield from zip(chunk, results, strict=True)


def _stat_chunk(names: Sequence[str]) -> list[_File | Fault]:
    return [_file_or_fault(name) for name in names]


def _file_or_fault(name: str) -> _File | Fault:
    try:
        path = _local_path(name)
        return _File(path, os.path.abspath(path), check_file(path))
    except ImageError as error:
        return error.fault


def _header_or_fault(path: str) -> Header | Fault:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return read_header(path)
        except ImageError as error:
            return error.fault


def _decoding_fault(path: str) -> Fault | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, too: said in training as well
        try:
            check_decoding(path)
        except ImageError as error:
            return error.fault
    return None


def _by_processes(
    work: Callable[[str], Result], paths: Sequence[str], chunk: int
) -> Generator[Result, None, None]:
    """In the order of the paths; closed, it drops what is left."""
    if len(paths) <= _ALONE * chunk:
        yield from map(work, paths)
        return
    workers = min(_MOST_WORKERS, 2 * available_cores())
    with process_pool(workers) as pool:
        yield from pool.map(work, paths, chunksize=chunk)


def _bar(results: Iterable[Result], label: str, total: int, progress: bool) -> Iterable[Result]:
    bar: Iterable[Result] = tqdm(
        results, label, total, unit="image", delay=_BAR_DELAY, disable=not progress
    )
    return bar


def load_image(entry: Entry) -> NDArray[np.uint8]:
    """The original pixels of an image entry, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is missing, damaged, of more than 8 bits per channel, too large for
            Pillow, or not of the size that the entry says; the file and the image id are named.
    """
    path = str(entry["file_name"])
    name = f"image {entry['image_id']}: {printable(path)}"
    with _faults_of(path, name):
        header = _read_header(path)
        if fault := size_fault(entry, header):
            raise ImageError(name, fault)
        image: NDArray[np.uint8] = read_image(path, "RGB")
    return image


def checked_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The pixels of an image file, (H, W, 3) uint8 BGR.

    Raises:
        ImageError: the file is missing, damaged, of more than 8 bits per channel or too large for
            Pillow; the file is named.
    """
    path = os.fspath(path)
    with _faults_of(path):
        _read_header(path)
        image: NDArray[np.uint8] = read_image(path, "BGR")
    return image


def pixels_of(
    image: Image.Image | IO[bytes],
    name: str,
    *,
    formats: tuple[str, ...] | None = None,
    largest: int | None = None,
) -> NDArray[np.uint8]:
    """As :func:`checked_image`, of an opened image or the content of a file.

    Args:
        image: what Pillow opened, or can open.
        name: for messages.
        formats: Pillow's names of those that the content of a file may have; None: all it knows.
        largest: number of pixels that are decoded at most; None: Pillow's own limit.

    Raises:
        ImageError: as there.
    """
    try:
        with _truncation_refused():
            opened = image if isinstance(image, Image.Image) else Image.open(image, formats=formats)
            _refuse_depth(opened, name)
            if largest is not None and opened.width * opened.height > largest:
                raise ImageError(name, Fault("huge", f"{opened.width} x {opened.height} px"))
            pixels: NDArray[np.uint8] = convert_PIL_to_numpy(_apply_exif_orientation(opened), "BGR")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(name, Fault("no_image", "no format that is known")) from error
    except Exception as error:  # noqa: BLE001 (Pillow's readers raise anything on damaged files)
        raise ImageError(name, _fault_of(name, error)) from error
    if pixels.size == 0:
        raise ImageError(name, Fault("empty", "0 pixels"))
    return np.ascontiguousarray(pixels)


def _refuse_depth(image: Image.Image, name: str) -> None:
    if image.mode.startswith(_DEEP_MODES):
        raise ImageError(name, Fault("deep", f"Pillow's mode {image.mode}"))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size and orientation of an image file; nothing is decoded.

    Raises:
        ImageError: as :func:`checked_image`, save damage that only decoding finds.
    """
    path = os.fspath(path)
    with _faults_of(path):
        return _read_header(path)


def check_decoding(path: str | os.PathLike[str]) -> None:
    """Reads all data of an image file.

    Raises:
        ImageError: as :func:`checked_image`.
    """
    path = os.fspath(path)
    with _faults_of(path), _truncation_refused(), _opened(path) as (_, image):
        # A JPEG's data are all read for an image of an eighth of the size, too, three times faster.
        image.draft(image.mode, (1, 1))
        image.load()


def check_file(path: str) -> os.stat_result:
    """Size and times of a file that is there, not empty, and a file.

    Raises:
        ImageError: it is not.
    """
    with _faults_of(path):
        status = os.stat(path)  # noqa: PTH116 (half the time of Path.stat, and there are 100,000)
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            found = "a folder" if is_folder else "a pipe, socket or device"
            raise ImageError(printable(path), Fault("no_file", found))
        if status.st_size == 0:
            raise ImageError(printable(path), Fault("empty", "0 bytes"))
    return status


def _local_path(path: str) -> str:
    with _faults_of(path):
        local: str = PathManager.get_local_path(path)
    return local


def _read_header(path: str) -> Header:
    check_file(_local_path(path))  # opening a pipe would wait for ever
    with _opened(path) as (stream, image):
        _refuse_depth(image, printable(path))
        if image.mode not in ("RGB", "L"):
            Image.new(image.mode, (1, 1)).convert("RGB")  # ValueError where there is no such way
        width, height = image.size
        if _is_turned(image, stream):
            return Header(width, height, turned=True)
    return Header(height, width, turned=False)


@contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], Image.Image]]:
    with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
        yield stream, image


@contextmanager
def _truncation_refused() -> Iterator[None]:
    """Whatever another library has set: training would see a grey half."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _is_turned(image: Image.Image, stream: IO[bytes]) -> bool:
    if image.format == "PNG" and not _png_has_texts(stream):
        return False  # asking Pillow would decode the image, in case an orientation follows
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS
    except _EXIF_ERRORS:  # damaged EXIF data: Detectron2 shows the image as it is
        return False


def _png_has_texts(stream: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that may hold an orientation; leaves the position as it was."""
    position = stream.tell()
    stream.seek(_PNG_FIRST_CHUNK)
    try:
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in _PNG_TEXTS:
                return True
            stream.seek(length + 4, os.SEEK_CUR)  # the data and their checksum
    finally:
        stream.seek(position)
    return False


@contextmanager
def _faults_of(path: str, name: str | None = None) -> Iterator[None]:
    """Turns whatever reading an image raises into an ImageError."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (Pillow's readers raise anything on damaged files)
        fault = error.fault if isinstance(error, ImageError) else _fault_of(path, error)
        raise ImageError(name or printable(path), fault) from error


def _fault_of(path: str, error: Exception) -> Fault:
    said = str(error) or type(error).__name__
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Fault("missing", _what_is_there(path))
    if isinstance(error, PermissionError):
        return Fault("forbidden", str(error.strerror))
    bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning made an error
    if isinstance(error, (*bomb, MemoryError)):
        return Fault("huge", said)
    if isinstance(error, UnidentifiedImageError):
        with PathManager.open(path, "rb") as stream:
            return Fault("no_image", f"begins with {stream.read(_HEAD)!r}")
    if isinstance(error, OSError) and error.errno is not None:
        return Fault("unreadable", said)
    return Fault("damaged", said)


def _what_is_there(path: str) -> str:
    """In place of a missing file: its name written otherwise, or how far its path leads."""
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    cases = (stem + suffix.lower(), stem + suffix.upper(), name.lower(), name.upper())
    others = [*(os.path.join(folder, one) for one in cases), path.replace("\\", "/")]
    for other in others:
        if other != path and os.path.isfile(other):
            return f"no such file, but {printable(other)} is there"
    while folder and not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        if os.path.isdir(parent or os.curdir):
            return f"no folder {printable(folder)}"
        folder = parent
    return "no such file"
