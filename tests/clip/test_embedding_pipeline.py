"""The stages of a build: packing, order, bounds, and errors in each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from ovd_d2.clip.crops import CropRecipe, embed_proposals
from ovd_d2.clip.pipeline import (
    ImageTask,
    LoadedImage,
    Piece,
    _encoder_threads,
    embed_images,
    pack,
    run_ahead,
)
from ovd_d2.clip.teacher import CLIPTeacher

HEIGHT, WIDTH = 30, 40


class GridModel(torch.nn.Module):
    """Its embedding is the mean colour of the four quarters: D = 12; remembers its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.fail_at = -1

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        if len(self.batches) == self.fail_at:
            raise RuntimeError("out of memory")
        return torch.nn.functional.adaptive_avg_pool2d(batch, 2).flatten(1) + 0.1

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(tokens), 12)


@pytest.fixture
def model() -> GridModel:
    return GridModel()


@pytest.fixture
def teacher(model: GridModel) -> CLIPTeacher:
    return CLIPTeacher(
        model,
        lambda sentences: torch.zeros(len(sentences), 1, dtype=torch.int64),
        {"size": (8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic"},
        architecture="Grid",
    )


def pixels_of(image_id: int) -> np.ndarray:
    generator = np.random.default_rng(image_id)
    return generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def task(image_id: int, boxes: int, load: Callable[[], Any] | None = None) -> ImageTask:
    generator = torch.Generator().manual_seed(image_id)
    corner = torch.rand(boxes, 2, generator=generator) * 20
    size = torch.rand(boxes, 2, generator=generator) * 15
    record = {
        "boxes": torch.cat([corner, corner + size], 1),
        "objectness": torch.rand(boxes, generator=generator),
    }
    return ImageTask(image_id, record, load or (lambda: pixels_of(image_id)), 3 * HEIGHT * WIDTH)


class Written:
    """A `write` that keeps what it gets."""

    def __init__(self, fail_at: int = -1) -> None:
        self.records: dict[int, dict[str, torch.Tensor]] = {}
        self.threads: set[int] = set()
        self.fail_at = fail_at

    def __call__(self, image_id: int, record: Any) -> None:
        if image_id == self.fail_at:
            raise OSError("No space left on device")
        self.threads.add(threading.get_ident())
        self.records[image_id] = dict(record)


COUNTS = {5: 3, 2: 0, 9: 40, 7: 1, 4: 0, 1: 2}  # image id -> boxes; 9 is larger than a batch


@pytest.mark.parametrize("batch_size", [1, 7, 16, 500])
def test_every_image_gets_the_embeddings_of_its_own_boxes(
    teacher: CLIPTeacher, model: GridModel, batch_size: int
) -> None:
    tasks = [task(image_id, count) for image_id, count in COUNTS.items()]
    written = Written()
    order = list(embed_images(tasks, teacher, written, batch_size=batch_size))
    assert order == list(COUNTS) == list(written.records)
    assert len(written.threads) == 1
    crops = 2 * sum(COUNTS.values())
    assert model.batches == [batch_size] * -(-crops // batch_size)  # all full, the last filled up
    for each in tasks:
        record = written.records[each.image_id]
        assert torch.equal(record["boxes"], each.record["boxes"])
        assert torch.equal(record["objectness"], each.record["objectness"])
        alone = embed_proposals(pixels_of(each.image_id), each.record["boxes"], teacher)
        torch.testing.assert_close(record["embeddings"], alone)


def test_the_recipe_reaches_the_crops(teacher: CLIPTeacher) -> None:
    one, written = task(3, 6), Written()
    recipe = CropRecipe((2.0,), "squash")
    list(embed_images([one], teacher, written, recipe, batch_size=4))
    expected = embed_proposals(pixels_of(3), one.record["boxes"], teacher, recipe)
    torch.testing.assert_close(written.records[3]["embeddings"], expected)


def test_the_content_does_not_depend_on_what_shares_a_batch() -> None:
    """Bit for bit, with a real network: what a distributed build relies on."""
    real = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")
    tasks = [task(image_id, count) for image_id, count in COUNTS.items()]
    together, apart = Written(), Written()
    list(embed_images(tasks, real, together, batch_size=48))
    for each in reversed(tasks):
        list(embed_images([each], real, apart, batch_size=48))
    for image_id, record in together.records.items():
        assert torch.equal(record["embeddings"], apart.records[image_id]["embeddings"])


def test_nothing_to_do(teacher: CLIPTeacher, model: GridModel) -> None:
    assert list(embed_images([], teacher, Written())) == []
    empty = Written()
    assert list(embed_images([task(1, 0)], teacher, empty)) == [1]
    assert empty.records[1]["embeddings"].shape == (0, 12)
    assert model.batches == []


def test_the_batch_size_is_checked(teacher: CLIPTeacher) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        list(embed_images([], teacher, Written(), batch_size=0))


# Packing -----------------------------------------------------------------------------------------


def loaded(image_id: int, windows: int, side: int = 10) -> LoadedImage:
    numbers = torch.arange(windows)[:, None].expand(-1, 4)
    return LoadedImage(
        task(image_id, 0), torch.zeros(side, side, 3, dtype=torch.uint8), image_id * 100 + numbers
    )


def shape_of(batches: Iterator[list[Piece]]) -> list[list[tuple[int, int, bool]]]:
    return [[(p.task.image_id, len(p.windows), p.last) for p in batch] for batch in batches]


def test_packing_fills_every_batch() -> None:
    images = [loaded(1, 3), loaded(2, 0), loaded(3, 9), loaded(4, 1), loaded(5, 0)]
    batches = list(pack(images, 4, image_bytes=10**6))
    assert shape_of(iter(batches)) == [
        [(1, 3, True), (2, 0, True), (3, 1, False)],
        [(3, 4, False)],
        [(3, 4, True)],
        [(4, 1, True), (5, 0, True)],
    ]
    windows = torch.cat([piece.windows for batch in batches for piece in batch])
    assert torch.equal(windows, torch.cat([image.windows for image in images]))


def test_packing_ends_a_batch_that_holds_many_large_images() -> None:
    images = [loaded(k, 1, side=100) for k in range(5)]  # 30,000 bytes each
    assert [len(batch) for batch in pack(images, 100, image_bytes=50_000)] == [2, 2, 1]


# Working ahead -----------------------------------------------------------------------------------


def test_running_ahead_keeps_the_order_and_the_bounds() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    def slow_for_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number

    with ThreadPoolExecutor(3) as pool:
        for expected, got in enumerate(run_ahead(pool, slow_for_even, items(), 4)):
            assert got == expected
            assert len(taken) <= expected + 6  # 4 ahead, this one, and the next in hand
    assert len(taken) == 20


def test_running_ahead_respects_the_budget_but_always_moves() -> None:
    started: list[int] = []

    def start(price: int) -> int:
        started.append(price)
        return price

    with ThreadPoolExecutor(4) as pool:
        results = run_ahead(pool, start, [4, 4, 100, 1, 1, 1], 5, lambda price: price, 10)
        assert next(results) == 4
        time.sleep(0.05)
        assert started == [4, 4]  # 100 waits until it is alone
        assert list(results) == [4, 100, 1, 1, 1]


def test_few_images_are_decoded_before_they_are_needed(teacher: CLIPTeacher) -> None:
    decoded: list[int] = []
    most = 0

    def load(image_id: int) -> np.ndarray:
        decoded.append(image_id)
        return pixels_of(image_id)

    tasks = (task(k, 8, lambda k=k: load(k)) for k in range(200))  # type: ignore[misc]
    written = Written()
    for done, _ in enumerate(embed_images(tasks, teacher, written, batch_size=16)):
        most = max(most, len(decoded) - done)
    assert done == 199
    assert most < 40  # stages times a few, whatever the number of images


# Errors ------------------------------------------------------------------------------------------


def tasks_with_error(at: int, total: int, taken: list[int]) -> Iterator[ImageTask]:
    def broken() -> np.ndarray:
        raise OSError("image 3: scene.jpg is missing")

    for image_id in range(total):
        taken.append(image_id)
        yield task(image_id, 8, broken if image_id == at else None)


def assert_stopped_early(taken: list[int], written: Written) -> None:
    assert len(taken) < 60  # of 1,000
    assert list(written.records) == list(range(len(written.records)))
    assert all(len(record["embeddings"]) == 8 for record in written.records.values())
    assert not any(thread.name.startswith(("load", "encode", "write")) for thread in threads())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.is_alive()]


def test_an_error_of_decoding_stops_the_build(teacher: CLIPTeacher) -> None:
    taken: list[int] = []
    written = Written()
    with pytest.raises(OSError, match=r"image 3: scene\.jpg is missing"):
        list(embed_images(tasks_with_error(3, 1000, taken), teacher, written, batch_size=16))
    assert_stopped_early(taken, written)


def test_an_error_of_the_teacher_stops_the_build(teacher: CLIPTeacher, model: GridModel) -> None:
    taken: list[int] = []
    written, model.fail_at = Written(), 3
    with pytest.raises(RuntimeError, match="out of memory"):
        list(embed_images(tasks_with_error(-1, 1000, taken), teacher, written, batch_size=16))
    assert_stopped_early(taken, written)


def test_an_error_of_writing_stops_the_build(teacher: CLIPTeacher) -> None:
    taken: list[int] = []
    written = Written(fail_at=4)
    with pytest.raises(OSError, match="No space left on device"):
        list(embed_images(tasks_with_error(-1, 1000, taken), teacher, written, batch_size=16))
    assert_stopped_early(taken, written)
    assert list(written.records)[:4] == [0, 1, 2, 3]


def test_a_keyboard_interrupt_stops_the_build(teacher: CLIPTeacher) -> None:
    taken: list[int] = []
    written = Written()
    with pytest.raises(KeyboardInterrupt):
        for done in embed_images(
            tasks_with_error(-1, 1000, taken), teacher, written, batch_size=16
        ):
            if done == 5:
                raise KeyboardInterrupt
    assert len(taken) < 60


def test_an_error_of_the_task_list_reaches_the_caller(teacher: CLIPTeacher) -> None:
    def tasks() -> Iterator[ImageTask]:
        yield task(0, 3)
        raise KeyError("no proposals for image 1")

    with pytest.raises(KeyError, match="no proposals for image 1"):
        list(embed_images(tasks(), teacher, Written(), batch_size=16))


def test_threads_of_torch_are_as_before(teacher: CLIPTeacher) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert _encoder_threads(torch.device("cpu")) == (3, 1)
        assert _encoder_threads(torch.device("cuda")) == (2, 3)
        list(embed_images([task(1, 5), task(2, 9)], teacher, Written(), batch_size=4))
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
        torch.set_num_threads(10)
        assert _encoder_threads(torch.device("cpu")) == (4, 2)
    finally:
        torch.set_num_threads(before)
