"""Images through the teacher: decoding, cropping, encoding and writing at the same time.

Each stage has threads of its own and works ahead of the next one by a bounded number of items; all
of them spend their time outside Python's lock. Windows of several images share a batch of the
teacher, and embeddings find back to their images. What a stage raises reaches the caller, and no
stage begins anything new after it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ovd_d2.clip.crops import VILD_RECIPE, image_on_device
from ovd_d2.clip.recipe import Recipe
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.workers import closing

# Of decoded images that wait to be cropped, and again of those that one batch holds on to. A single
# image may be larger.
IMAGE_BYTES = 256 * 2**20
_MAX_ENCODERS = 4  # on the CPU: more would hold more batches in memory for nothing
_MAX_LOADERS = 8
_WRITES_AHEAD = 8

Item = TypeVar("Item")
Result = TypeVar("Result")
Record = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ImageTask:
    """An image to embed.

    Attributes:
        image_id: goes to `write`.
        record: boxes (K, 4) float XYXY in pixels of the image, and what else is to be written.
        load: returns the pixels, (H, W, 3) uint8 RGB; called in another thread.
        size: bytes that the pixels are expected to take, to bound how many wait decoded.
    """

    image_id: int
    record: Record
    load: Callable[[], NDArray[np.uint8]]
    size: int = 0


@dataclass(frozen=True)
class LoadedImage:
    """Pixels (H, W, 3) uint8 on the teacher's device and the recipe's windows (n, 4) on the CPU."""

    task: ImageTask
    pixels: torch.Tensor
    windows: torch.Tensor


@dataclass(frozen=True)
class Piece:
    """The part of an image's windows that is in one batch; `last` closes the image."""

    task: ImageTask
    pixels: torch.Tensor
    windows: torch.Tensor
    last: bool


def embed_images(
    tasks: Iterable[ImageTask],
    teacher: CLIPTeacher,
    write: Callable[[int, Record], None],
    recipe: Recipe = VILD_RECIPE,
    *,
    batch_size: int | None = None,
    image_bytes: int = IMAGE_BYTES,
) -> Iterator[int]:
    """Embeds the boxes of every image and writes its record with `embeddings` (K, D) added.

    Args:
        tasks: taken one by one, in this thread, as the stages can use them.
        teacher: the image encoder.
        write: called in the order of `tasks`, one at a time, in another thread.
        recipe: how boxes become embeddings.
        batch_size: of `Recipe.per_pass`, for every forward pass; a smaller batch is filled up with
            black images, since kernels chosen by batch size round differently and the result would
            depend on which images were embedded together.
        image_bytes: see IMAGE_BYTES.

    Yields:
        The image ids, in order, as they are written; the work stops when the caller does.

    Raises:
        ValueError: of `Recipe.per_pass`.
    """
    per_pass = recipe.per_pass(batch_size)
    encoders, threads = _encoder_threads(teacher.device)
    loaders = min(_MAX_LOADERS, os.cpu_count() or 1)
    failed = False  # of writing, which one thread does

    def load(task: ImageTask) -> LoadedImage:
        return _load(task, recipe, teacher.device)

    def embed(batch: list[Piece]) -> tuple[list[Piece], torch.Tensor]:
        return batch, _embed(batch, teacher, recipe, per_pass)

    def write_one(item: tuple[ImageTask, torch.Tensor]) -> int:
        task, rows = item
        nonlocal failed
        if failed:  # what was queued before the error was noticed
            raise RuntimeError(f"image {task.image_id} is not written after an error")
        failed = True
        write(task.image_id, {**task.record, "embeddings": recipe.combine(rows)})
        failed = False
        return task.image_id

    with (
        _thread_pool("load", loaders) as load_pool,
        _thread_pool("encode", encoders, threads) as encode_pool,
        _thread_pool("write", 1) as write_pool,
    ):
        images = run_ahead(load_pool, load, tasks, loaders + 1, _size_of, image_bytes)
        batches = pack(images, per_pass, image_bytes, whole_images=recipe.whole_images)
        embedded = run_ahead(encode_pool, embed, batches, encoders + 1)
        yield from run_ahead(write_pool, write_one, _finished(embedded), _WRITES_AHEAD)


def run_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    cost: Callable[[Item], int] = lambda item: 0,
    budget: int = 0,
) -> Iterator[Result]:
    """`map(function, items)` in the pool: in order, at most `ahead` results under way or waiting.

    Fewer, but at least one, where their costs would together exceed `budget`.
    """
    waiting: deque[tuple[int, Future[Result]]] = deque()
    for item in items:
        price = cost(item)
        while waiting and (
            len(waiting) >= ahead or price + sum(paid for paid, _ in waiting) > budget
        ):
            yield waiting.popleft()[1].result()
        waiting.append((price, pool.submit(function, item)))
    while waiting:
        yield waiting.popleft()[1].result()


def pack(
    images: Iterable[LoadedImage],
    batch_size: int,
    image_bytes: int,
    *,
    whole_images: bool = False,
) -> Iterator[list[Piece]]:
    """Deals the windows of images, in order, into batches of exactly `batch_size`.

    The last batch may be smaller; so is one whose images take more than `image_bytes`.

    Args:
        whole_images: all windows of an image stay together, and `batch_size` counts images that
            have any.
    """
    batch: list[Piece] = []
    room, held = batch_size, 0
    for image in images:
        held += image.pixels.nbytes
        for piece in [_whole(image)] if whole_images else _pieces(image, room, batch_size):
            batch.append(piece)
            room -= min(1, len(piece.windows)) if whole_images else len(piece.windows)
            if room == 0 or (piece.last and held > image_bytes):
                yield batch
                batch, room = [], batch_size
                held = 0 if piece.last else image.pixels.nbytes
    if batch:
        yield batch


def _whole(image: LoadedImage) -> Piece:
    return Piece(image.task, image.pixels, image.windows, last=True)


def _pieces(image: LoadedImage, room: int, batch_size: int) -> Iterator[Piece]:
    """The first piece takes at most `room` windows; an image without windows is one empty piece."""
    start, count = 0, len(image.windows)
    while True:
        stop = min(count, start + room)
        yield Piece(image.task, image.pixels, image.windows[start:stop], stop == count)
        if stop == count:
            return
        start, room = stop, batch_size


def _load(task: ImageTask, recipe: Recipe, device: torch.device) -> LoadedImage:
    pixels = task.load()
    windows = recipe.windows(task.record["boxes"], pixels.shape[0], pixels.shape[1])
    return LoadedImage(task, image_on_device(pixels, device), windows)


def _size_of(task: ImageTask) -> int:
    return task.size


def _embed(
    batch: Sequence[Piece], teacher: CLIPTeacher, recipe: Recipe, per_pass: int
) -> torch.Tensor:
    """(n, D) float32 on the CPU; n is the number of windows in the batch."""
    count = sum(len(piece.windows) for piece in batch)
    if not count:
        return torch.zeros(0, teacher.embedding_dim)
    sources = [(piece.pixels, piece.windows) for piece in batch if len(piece.windows)]
    embeddings = recipe.encode(sources, teacher, fill_to=per_pass)
    return embeddings.cpu()  # waits for the device, while another thread feeds it


def _finished(
    batches: Iterable[tuple[list[Piece], torch.Tensor]],
) -> Iterator[tuple[ImageTask, torch.Tensor]]:
    """Images whose last piece is embedded, with all their rows (n, D) on the CPU."""
    parts: list[torch.Tensor] = []
    for batch, embeddings in batches:
        sizes = [len(piece.windows) for piece in batch]
        for piece, part in zip(batch, embeddings.split(sizes), strict=True):
            parts.append(part)
            if piece.last:
                yield piece.task, torch.cat(parts)
                parts = []


def _encoder_threads(device: torch.device) -> tuple[int, int]:
    """How many batches are embedded at once, and by how many threads each.

    On the CPU two batches side by side use two cores better than one batch with two threads does:
    cropping is one thread's work, and the small operations of a network share badly. On another
    device one batch is prepared while the other one is computed.
    """
    if device.type != "cpu":
        return 2, torch.get_num_threads()
    threads = torch.get_num_threads()
    encoders = min(_MAX_ENCODERS, threads)
    return encoders, threads // encoders


@contextmanager
def _thread_pool(
    name: str, workers: int, torch_threads: int | None = None
) -> Iterator[ThreadPoolExecutor]:
    """Threads, closed as `ovd_d2.workers.closing` does.

    With `torch_threads` its threads compute with that many each; PyTorch keeps the number for
    threads that start later, so it is put back at the end.
    """
    before = torch.get_num_threads()
    initializer = None if torch_threads is None else partial(torch.set_num_threads, torch_threads)
    try:
        with closing(ThreadPoolExecutor(workers, name, initializer)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
