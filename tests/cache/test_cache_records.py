from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from ovd_d2.cache import DamagedFileError, Manifest
from ovd_d2.cache.records import encode_record, open_shard, pack_shard

NAN, INF = float("nan"), float("inf")


def test_layout_of_a_shard_by_hand(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest("proposals")
    first = {"boxes": torch.zeros(0, 4), "objectness": torch.zeros(0)}
    second = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "objectness": torch.tensor([0.5])}
    shard = load(
        pack_shard(
            [(9, encode_record(manifest, 9, second)), (4, encode_record(manifest, 4, first))]
        )
    )
    assert shard["image_ids"].tolist() == [4, 9]
    assert shard["offsets"].tolist() == [0, 0, 1]
    assert shard["boxes"].tolist() == [[1, 2, 3, 4]]
    assert shard["objectness"].tolist() == [0.5]


def test_a_shard_does_not_depend_on_the_order_of_its_records(
    make_manifest: Callable[..., Manifest], make_record: Callable
) -> None:
    manifest = make_manifest()
    records = [(i, encode_record(manifest, i, make_record(i))) for i in (3, 1, 2)]
    assert pack_shard(records) == pack_shard(records[::-1])


def test_embeddings_are_stored_as_fp16(make_manifest: Callable, make_record: Callable) -> None:
    record = encode_record(make_manifest(), 3, make_record(3))
    assert record["embeddings"].dtype == torch.float16
    assert record["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("embeddings", NAN, "1 of 3 rows of embeddings are NaN or infinite"),
        ("boxes", INF, "1 of 3 rows of boxes are NaN or infinite"),
        ("objectness", NAN, "1 of 3 rows of objectness are NaN or infinite"),
        ("objectness", 1.5, "outside \\[0, 1\\]"),
        ("boxes", 1000.0, "x2 < x1"),
        ("embeddings", 0.0, "not unit rows \\(first norm: \\[0.0\\]\\)"),
    ],
)
def test_wrong_values_are_refused_with_the_image_id(
    make_manifest: Callable, make_record: Callable, field: str, value: float, message: str
) -> None:
    record = make_record(3)
    if field == "boxes":
        record[field][1, 0] = value
    else:
        record[field][1] = value
    with pytest.raises(ValueError, match=f"image 3: .*{message}"):
        encode_record(make_manifest(), 3, record)


@pytest.mark.parametrize(
    ("field", "shape"), [("boxes", (3, 5)), ("objectness", (2,)), ("embeddings", (3, 7))]
)
def test_wrong_shapes_are_refused(
    make_manifest: Callable, make_record: Callable, field: str, shape: tuple[int, ...]
) -> None:
    record = {**make_record(3), field: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"image 3: {field} has shape"):
        encode_record(make_manifest(), 3, record)


def test_missing_and_foreign_fields_are_refused(
    make_manifest: Callable, make_record: Callable
) -> None:
    record = make_record(3)
    with pytest.raises(ValueError, match="image 3: record has fields"):
        encode_record(make_manifest("proposals"), 3, record)
    del record["embeddings"]
    with pytest.raises(ValueError, match="image 3: record has fields"):
        encode_record(make_manifest(), 3, record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": torch.tensor([0, 3])}, r"offsets is torch.int64 \(2,\), expected .* \(3,\)"),
        ({"offsets": torch.tensor([0, 4, 3])}, "do not ascend from 0"),
        ({"offsets": torch.tensor([1, 2, 3])}, "do not ascend from 0"),
        ({"offsets": torch.tensor([0, 2, 4])}, "offsets end at 4, the fields have 3 rows"),
        (
            {"offsets": torch.tensor([0.0, 2, 3])},
            "offsets is torch.float32 .* expected torch.int64",
        ),
        ({"checksums": torch.tensor([7])}, "checksums is"),
        ({"image_ids": torch.tensor([2, 1])}, "image_ids do not ascend"),
        ({"boxes": torch.zeros(3, 4, dtype=torch.float64)}, "boxes has the type F64"),
        ({"extra": torch.zeros(3)}, "not a shard of this store"),
    ],
)
def test_untrusted_headers_are_checked(
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    change: dict[str, torch.Tensor],
    message: str,
) -> None:
    shard = {
        "image_ids": torch.tensor([1, 2]),
        "offsets": torch.tensor([0, 1, 3]),
        "checksums": torch.tensor([7, 8]),
        "boxes": torch.zeros(3, 4),
        "objectness": torch.zeros(3),
    }
    fields = make_manifest("proposals").fields
    path = tmp_path / "shard-n002-00000.safetensors"
    save_file(shard, path)
    assert len(open_shard(path, fields)["boxes"]) == 3
    save_file({**shard, **change}, path)
    with pytest.raises(DamagedFileError, match=message):
        open_shard(path, fields)
