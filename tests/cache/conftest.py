from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import DatasetInfo, Manifest, RecordWriter, dataset_fingerprint

DIM = 8
IDS = range(1, 6)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the tests fork


@pytest.fixture
def make_images() -> Callable[..., list[dict]]:
    """`make_images(ids)`: image entries; image 7 is data/7.png of 41 x 33."""

    def make(ids: Iterable[int] = IDS, **changes: object) -> list[dict]:
        entry = {"height": 41, "width": 33, **changes}
        return [{"file_name": f"data/{one}.png", "image_id": one, **entry} for one in ids]

    return make


@pytest.fixture
def make_manifest(make_images: Callable[..., list[dict]]) -> Callable[..., Manifest]:
    """`make_manifest(kind, ids)`: of a data set with just these images."""

    def make(kind: str = "embeddings", ids: Iterable[int] = IDS, **changes: object) -> Manifest:
        embeds, images = kind == "embeddings", make_images(ids)
        values: dict = {
            "kind": kind,
            "dataset": DatasetInfo("toy_train", dataset_fingerprint(images), len(images)),
            "proposals": "p" * 16,
            "recipe": {"scales": [1.0, 1.5]},
            "teacher": "Toy-RN-0123" if embeds else "",
            "embedding_dim": DIM if embeds else 0,
            **changes,
        }
        return Manifest(**values)

    return make


@pytest.fixture
def make_record() -> Callable[..., Tensors]:
    """`make_record(image_id)`: id % 4 proposals (so K = 0 occurs), the same in every process."""

    def make(image_id: int, kind: str = "embeddings", rows: int | None = None) -> Tensors:
        generator = torch.Generator().manual_seed(image_id)
        k = image_id % 4 if rows is None else rows
        corner = torch.rand(k, 2, generator=generator) * 50
        size = torch.rand(k, 2, generator=generator) * 50
        record = {
            "boxes": torch.cat([corner, corner + size], 1),
            "objectness": torch.rand(k, generator=generator),
        }
        if kind == "embeddings":
            rows_ = torch.randn(k, DIM, generator=generator)
            record["embeddings"] = torch.nn.functional.normalize(rows_, dim=1)
        return record

    return make


@pytest.fixture
def open_writer(
    make_manifest: Callable[..., Manifest], make_images: Callable[..., list[dict]]
) -> Callable[..., RecordWriter]:
    """`open_writer(folder, ids)`: of a store of just these images; other options: its header."""

    def run(
        path: Path,
        ids: Iterable[int] = IDS,
        kind: str = "embeddings",
        shard: int | None = 2,
        overwrite: bool = False,
        part: tuple[int, int] = (1, 1),
        height: int = 41,
        **header: object,
    ) -> RecordWriter:
        return RecordWriter(
            path,
            make_manifest(kind, ids, **header),
            images=make_images(ids, height=height),
            images_per_shard=shard,
            overwrite=overwrite,
            part=part,
        )

    return run


@pytest.fixture
def build(
    open_writer: Callable[..., RecordWriter], make_record: Callable[..., Tensors]
) -> Callable[..., Path]:
    """`build(folder, ids)`: a finished store, continued if one is there; options: `open_writer`.

    `record(image_id, kind)` makes the records; without, `make_record`.
    """

    def run(
        path: Path,
        ids: Iterable[int] = IDS,
        kind: str = "embeddings",
        record: Callable[..., Tensors] = make_record,
        **options: object,
    ) -> Path:
        with open_writer(path, ids, kind, **options) as writer:
            for image_id in writer.waiting_ids:
                writer.add(image_id, record(image_id, kind))
            writer.finish()
        return path

    return run
