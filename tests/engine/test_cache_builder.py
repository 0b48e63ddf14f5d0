from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from ovd_d2.cache import (
    CacheError,
    DatasetInfo,
    EmbeddingCache,
    Manifest,
    ProposalStore,
    RecordWriter,
    dataset_fingerprint,
)
from ovd_d2.cache.identity import ImageIdentity, load_image_list
from ovd_d2.clip.crops import CropRecipe, embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.engine.cache_builder import build_cache, load_image
from tests.processes import run_ranks

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAME = "toy_train"
SIZE = (24, 32)  # height, width


class ColourModel(torch.nn.Module):
    """Its embedding is the mean colour of the image: D = 3, easy to check by hand."""

    def __init__(self, seed: int = 0, broken_after: int | None = None) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed))  # changes the fingerprint only
        self.broken_after = broken_after
        self.calls = 0

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.broken_after is not None and self.calls > self.broken_after:
            return torch.full((len(batch), 3), float("nan"))
        return batch.mean(dim=(2, 3))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(tokens), 3)


def colour_teacher(model: ColourModel | None = None) -> CLIPTeacher:
    return CLIPTeacher(
        model or ColourModel(),
        lambda sentences: torch.zeros(len(sentences), 1, dtype=torch.int64),
        {"size": (8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear"},
        architecture="Colour",
    )


@pytest.fixture
def dataset(tmp_path: Path) -> list[dict[str, Any]]:
    """Four images: left half red, right half blue, so that context changes the embedding."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, :16, 0] = 255
    pixels[:, 16:, 2] = 255
    (tmp_path / "images").mkdir()
    entries = []
    for image_id in (11, 12, 13, 14):
        path = tmp_path / "images" / f"{image_id}.png"
        Image.fromarray(pixels).save(path)
        entries.append(
            {"file_name": str(path), "image_id": image_id, "height": SIZE[0], "width": SIZE[1]}
        )
    return entries


@pytest.fixture
def proposals(tmp_path: Path, dataset: list[dict[str, Any]]) -> ProposalStore:
    """Images 11, 12, 13 have a red, a blue and a mixed box in rising objectness; 14 has none."""
    boxes = torch.tensor([[2.0, 2, 8, 8], [20, 2, 28, 8], [12, 4, 20, 12]])
    info = DatasetInfo(NAME, dataset_fingerprint(dataset), len(dataset))
    manifest = Manifest("proposals", info, "rpn")
    with RecordWriter(tmp_path / "proposals", manifest, images=dataset) as writer:
        for entry in dataset:
            k = 0 if entry["image_id"] == 14 else 3
            record = {"boxes": boxes[:k], "objectness": torch.tensor([0.1, 0.5, 0.9])[:k]}
            writer.add(entry["image_id"], record)
        writer.finish()
    return ProposalStore(tmp_path / "proposals")


@pytest.fixture
def run(
    tmp_path: Path, dataset: list[dict[str, Any]], proposals: ProposalStore
) -> Callable[..., EmbeddingCache]:
    def build(model: ColourModel | None = None, **options: Any) -> EmbeddingCache:
        summary = build_cache(
            options.pop("dataset_dicts", dataset),
            proposals,
            colour_teacher(model),
            options.pop("path", tmp_path / "cache"),
            dataset_name=NAME,
            images_per_shard=2,
            progress=False,
            **options,
        )
        return EmbeddingCache(summary.path)

    return build


def test_embeddings_are_those_of_the_crops_best_first(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]], proposals: ProposalStore
) -> None:
    cache = run()
    assert cache.verify() == []
    assert list(cache) == [11, 12, 13, 14]
    read = cache[11]
    assert read.embeddings is not None
    assert torch.equal(read.boxes, proposals[11].boxes.flip(0))  # their objectness ascends
    assert torch.equal(read.objectness, proposals[11].objectness.flip(0))
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
    torch.testing.assert_close(read.embeddings[2], red, atol=1e-3, rtol=0)
    torch.testing.assert_close(read.embeddings[1], blue, atol=1e-3, rtol=0)
    half = torch.tensor([0.5**0.5, 0, 0.5**0.5])  # 1x and 1.5x are both half red, half blue
    torch.testing.assert_close(read.embeddings[0], half, atol=1e-2, rtol=0)
    expected = embed_proposals(load_image(dataset[0]), read.boxes, colour_teacher())
    torch.testing.assert_close(read.embeddings, expected, atol=1e-3, rtol=0)
    assert len(cache[14]) == 0


def test_manifest_names_what_the_cache_was_made_from(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]], proposals: ProposalStore
) -> None:
    manifest = run(top_k=2, recipe=CropRecipe(resize="squash")).manifest
    assert manifest.teacher == colour_teacher().fingerprint
    assert manifest.embedding_dim == 3
    assert manifest.proposals == proposals.fingerprint
    assert manifest.dataset == DatasetInfo(NAME, dataset_fingerprint(dataset), 4)
    assert manifest.recipe["scales"] == [1.0, 1.5]
    assert manifest.recipe["resize"] == "squash"
    assert manifest.recipe["top_k"] == 2


def test_top_k_keeps_the_highest_objectness_with_its_own_boxes(
    run: Callable[..., EmbeddingCache], proposals: ProposalStore
) -> None:
    read = run(top_k=2)[12]
    torch.testing.assert_close(read.objectness, torch.tensor([0.9, 0.5]))
    assert torch.equal(read.boxes, proposals[12].boxes[[2, 1]])
    assert read.embeddings is not None
    blue = torch.tensor([0.0, 0, 1])
    torch.testing.assert_close(read.embeddings[1], blue, atol=1e-3, rtol=0)


def test_summary_counts(
    tmp_path: Path, dataset: list[dict[str, Any]], proposals: ProposalStore
) -> None:
    options: dict[str, Any] = {"dataset_name": NAME, "images_per_shard": 3, "progress": False}
    teacher = colour_teacher()
    summary = build_cache(dataset, proposals, teacher, tmp_path / "cache", **options)
    assert (summary.manifest.num_images, summary.images_written, summary.manifest.num_rows) == (
        4,
        4,
        9,
    )
    files = (tmp_path / "cache").glob("shard-*.safetensors")
    assert summary.manifest.num_bytes == sum(path.stat().st_size for path in files)
    again = build_cache(dataset, proposals, teacher, tmp_path / "cache", **options)
    assert again.images_written == 0
    assert (again.manifest.num_images, again.manifest.num_rows) == (4, 9)


def test_an_interrupted_build_continues_without_repeating(
    tmp_path: Path, run: Callable[..., EmbeddingCache]
) -> None:
    with pytest.raises(ValueError, match="image 13: refused: .*embeddings are NaN"):
        run(ColourModel(broken_after=2), path=tmp_path / "broken", batch_size=6)
    model = ColourModel()
    continued = run(model, path=tmp_path / "broken", batch_size=6)  # 3 boxes at 2 scales
    assert model.calls == 1  # images 11 and 12 are there, 14 has no proposals
    whole = run(path=tmp_path / "whole")
    assert continued.fingerprint == whole.fingerprint


def test_another_teacher_does_not_continue_a_build(run: Callable[..., EmbeddingCache]) -> None:
    run()
    first, other = (colour_teacher(ColourModel(seed)).fingerprint for seed in (0, 1))
    with pytest.raises(CacheError, match=f"teacher: '{first}' here, '{other}' asked for"):
        run(ColourModel(1))
    assert run(ColourModel(1), overwrite=True).manifest.teacher == other


def test_all_problems_of_the_input_are_reported_before_any_work(
    tmp_path: Path, run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    model = ColourModel()
    dicts = [*dataset, dataset[0], {**dataset[0], "image_id": 77}]
    with pytest.raises(CacheError) as caught:
        run(model, dataset_dicts=dicts, top_k=0)
    message = str(caught.value)
    assert "1 image ids occur more than once" in message
    assert "no proposals for 1 of 6 images (first ids: [77])" in message
    assert "top_k is 0" in message
    assert model.calls == 0
    assert not (tmp_path / "cache").exists()
    with pytest.raises(CacheError, match="1 of 1 image ids cannot be stored, first: 'a'"):
        run(dataset_dicts=[{**dataset[0], "image_id": "a"}])
    with pytest.raises(CacheError, match="it has no images"):
        run(dataset_dicts=[])


def test_proposals_of_other_images_under_these_ids_are_refused(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    again = [{**entry, "image_id": 25 - entry["image_id"]} for entry in dataset]
    with pytest.raises(CacheError, match=r"cannot embed .*: image 14 was 14\.png .*is 11\.png"):
        run(dataset_dicts=again)
    with pytest.raises(CacheError, match=r"first: image 12 was 12\.png \(24 x 32\), is 12\.png"):
        run(dataset_dicts=[dataset[0], {**dataset[1], "height": 48}])


def test_a_part_of_the_images_that_have_proposals_is_enough(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    cache = run(dataset_dicts=dataset[1:3])
    assert list(cache) == [12, 13]
    assert load_image_list(cache.path, cache.manifest.dataset) == {
        one: ImageIdentity(f"{one}.png", *SIZE) for one in (12, 13)
    }


def test_a_missing_image_is_named(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    Path(dataset[2]["file_name"]).unlink()
    with pytest.raises(CacheError, match=r"images are missing .*13\.png, image id 13"):
        run()


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_damaged_image_is_named_and_the_build_continues_once_repaired(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]], damage: str
) -> None:
    path = Path(dataset[2]["file_name"])
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    sound = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"x" * 99, "truncated": sound[:600]}[damage])
    with pytest.raises(
        CacheError, match=r"13\.png.* (empty|no image|cannot be read)|(empty|no images) .*13\.png"
    ):
        run()
    path.write_bytes(sound)
    assert list(run()) == [11, 12, 13, 14]


def test_an_image_of_another_size_is_named(
    run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    Image.new("RGB", (40, 24)).save(dataset[1]["file_name"])
    with pytest.raises(CacheError, match=r"12\.png, image id 12.*24 x 40 .*annotated as 24 x 32"):
        run()


def test_the_command_builds_and_reports(
    tmp_path: Path,
    dataset: list[dict[str, Any]],
    proposals: ProposalStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = runpy.run_path(str(TOOLS / "cache.py"))["main"]
    monkeypatch.setattr(CLIPTeacher, "from_open_clip", lambda *args, **kwargs: colour_teacher())
    monkeypatch.setitem(DatasetCatalog.data, NAME, lambda: dataset)
    arguments = f"build --dataset {NAME} --proposals {proposals.path} --output {tmp_path / 'cache'}"
    main([*arguments.split(), "--architecture", "Colour", "--pretrained", "x", "--top-k", "2"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["images"] == "4 (4 in this run)"
    assert lines["proposals"] == "6"
    assert lines["path"] == str(tmp_path / "cache")
    assert float(lines["seconds"]) >= 0
    assert int(lines["bytes"].split()[0].replace(",", "")) > 0
    assert len(EmbeddingCache(tmp_path / "cache")[11]) == 2


def test_all_bad_images_are_named_before_anything_is_written_or_deleted(
    tmp_path: Path, run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    before = run().fingerprint
    Path(dataset[0]["file_name"]).unlink()
    Path(dataset[2]["file_name"]).write_bytes(b"garbage")
    model = ColourModel()
    with pytest.raises(CacheError, match="1 of 4 images are missing") as caught:
        run(model, overwrite=True)
    assert "image id 11" in str(caught.value)
    assert "1 of 4 files are no images" in str(caught.value)
    assert "image id 13" in str(caught.value)
    assert model.calls == 0
    assert EmbeddingCache(tmp_path / "cache").fingerprint == before


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 20_000), (20_000, 4)])
def test_extreme_images_and_boxes(tmp_path: Path, height: int, width: int) -> None:
    Image.new("RGB", (width, height), (0, 0, 255)).save(tmp_path / "x.png")
    file_name = str(tmp_path / "x.png")
    entry = {"file_name": file_name, "image_id": 1, "height": height, "width": width}
    info = DatasetInfo(NAME, dataset_fingerprint([entry]), 1)
    whole, point = [0.0, 0, width, height], [width - 0.5, height - 0.5, width, height]
    manifest = Manifest("proposals", info, "rpn")
    with RecordWriter(tmp_path / "proposals", manifest, images=[entry]) as writer:
        writer.add(1, {"boxes": torch.tensor([whole, point]), "objectness": torch.ones(2)})
        writer.finish()
    build_cache(
        [entry],
        ProposalStore(tmp_path / "proposals"),
        colour_teacher(),
        tmp_path / "cache",
        dataset_name=NAME,
        progress=False,
    )
    embeddings = EmbeddingCache(tmp_path / "cache")[1].embeddings
    torch.testing.assert_close(embeddings, torch.tensor([[0.0, 0, 1]] * 2), atol=1e-3, rtol=0)


def test_parts_hold_every_nth_shard_under_one_header(
    tmp_path: Path, run: Callable[..., EmbeddingCache], dataset: list[dict[str, Any]]
) -> None:
    whole = run()
    proposals = ProposalStore(tmp_path / "proposals")
    options = {"dataset_name": NAME, "progress": False, "images_per_shard": 1}
    stores = []
    for number in (1, 2, 3):
        path = tmp_path / f"part{number}"
        for built in (len(dataset[number - 1 :: 3]), 0):  # the second run finds nothing to do
            summary = build_cache(
                dataset[::-1], proposals, colour_teacher(), path, part=(number, 3), **options
            )
            assert summary.images_written == built
            assert not summary.manifest.complete
        stores.append(EmbeddingCache(path, allow_incomplete=True))
    assert [list(store) for store in stores] == [[11, 14], [12], [13]]
    for store in stores:
        assert store.manifest.header() == whole.manifest.header()
        for image_id in store:
            assert torch.equal(store[image_id].embeddings, whole[image_id].embeddings)
    # Another part in the folder of the first: together they are the cache.
    for number in (2, 3):
        summary = build_cache(
            dataset, proposals, colour_teacher(), tmp_path / "part1", part=(number, 3), **options
        )
    assert summary.manifest.complete
    assert EmbeddingCache(tmp_path / "part1").fingerprint == whole.fingerprint


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0), (5, 5)])
def test_impossible_parts_are_refused(
    run: Callable[..., EmbeddingCache], part: tuple[int, int]
) -> None:
    with pytest.raises(
        CacheError, match="part is|part 5 of 5 is empty: all images are in 2 shards"
    ):
        run(part=part)


def test_the_real_teacher_gives_the_same_bits_in_any_number_of_processes(tmp_path: Path) -> None:
    """On a CPU: batches have one size, and no row of a batch depends on its neighbours."""
    entries, proposals = noise_images(tmp_path)
    teacher = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")

    def build(path: Path) -> None:
        options = {"dataset_name": "noise", "batch_size": 8, "images_per_shard": 2}
        build_cache(entries, ProposalStore(proposals), teacher, path, progress=False, **options)

    build(tmp_path / "1")
    one = EmbeddingCache(tmp_path / "1")
    for count in (2, 4):
        assert run_ranks(count, lambda rank, count=count: build(tmp_path / f"{count}")) == (
            [0] * count
        )
        assert EmbeddingCache(tmp_path / f"{count}").fingerprint == one.fingerprint


def noise_images(folder: Path) -> tuple[list[dict[str, Any]], Path]:
    """Nine images with 0 to 6 boxes each, and the folder of the boxes."""
    generator = np.random.default_rng(0)
    entries = []
    for image_id in range(9):
        path = folder / f"{image_id}.png"
        Image.fromarray(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
        entry = {"file_name": str(path), "image_id": image_id, "height": 60, "width": 80}
        entries.append(entry)
    info = DatasetInfo("noise", dataset_fingerprint(entries), len(entries))
    manifest = Manifest("proposals", info, "rpn")
    with RecordWriter(folder / "proposals", manifest, images=entries) as writer:
        for image_id in range(9):
            corners = torch.from_numpy(generator.uniform(0, 40, (3 * image_id % 7, 2)))
            boxes = torch.cat([corners, corners + 20], dim=1)
            writer.add(image_id, {"boxes": boxes, "objectness": torch.ones(len(boxes))})
        writer.finish()
    return entries, folder / "proposals"
