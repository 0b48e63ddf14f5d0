"""Caches of a dense map: built, told apart from those of crops, killed, compared, commanded."""

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
from safetensors.torch import save_file

from ovd_d2.cache import CacheError, EmbeddingCache, ProposalStore, check_compatible
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.dense import DenseRecipe
from ovd_d2.data.images import load_image
from ovd_d2.engine.cache_builder import build_cache
from ovd_d2.errors import SetupError
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.vocabulary import Vocabulary
from tests.processes import CRASHED, die_at, exit_code, fork
from tests.proposal_stores import files_of, random_proposals, write_proposals
from tests.tiny_vits import DIM, NATIVE, folder_of_architecture, tiny_clip, tiny_teacher

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAME = "toy_train"
SIZES = {3: (40, 56), 1: (56, 40), 2: (30, 30), 8: (64, 48)}
COUNTS = {3: 5, 1: 0, 2: 3, 8: 4}
RECIPE = DenseRecipe(48)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # a test forks


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder, generator, found = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for image_id, (height, width) in SIZES.items():
        path = folder / f"{image_id}.png"
        small = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(path)
        size = {"height": height, "width": width}
        found.append({"file_name": str(path), "image_id": image_id, **size})
    return found


@pytest.fixture(scope="module")
def proposals(
    entries: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> ProposalStore:
    tensors = {k: random_proposals(COUNTS[k], *SIZES[k], seed=k) for k in SIZES}
    return write_proposals(tmp_path_factory.mktemp("stores") / "p", entries, tensors)


@pytest.fixture
def build(
    entries: list[dict[str, Any]], proposals: ProposalStore, tmp_path: Path
) -> Callable[..., EmbeddingCache]:
    def run(name: str = "dense", **options: Any) -> EmbeddingCache:
        given = {"recipe": RECIPE, "images_per_shard": 1, "dtype": "float32", **options}
        teacher = given.pop("teacher", None) or tiny_teacher(NATIVE)
        path, progress = tmp_path / name, {"dataset_name": NAME, "progress": False}
        build_cache(entries, proposals, teacher, path, **progress, **given)
        return EmbeddingCache(path)

    return run


def test_a_cache_holds_what_the_recipe_gives(
    build: Callable[..., EmbeddingCache], entries: list[dict[str, Any]], proposals: ProposalStore
) -> None:
    cache = build()
    assert cache.verify() == []
    for entry in entries:
        record, boxes = cache[entry["image_id"]], proposals[entry["image_id"]].boxes
        assert torch.equal(record.boxes, boxes)
        expected = embed_proposals(load_image(entry), boxes, tiny_teacher(NATIVE), RECIPE)
        torch.testing.assert_close(record.embeddings, expected, atol=3e-7, rtol=0)  # unit again


def test_images_that_share_a_pass_give_the_same_cache(build: Callable[..., EmbeddingCache]) -> None:
    recipe = DenseRecipe(48, square=True)
    alone, together = (build(f"b{n}", recipe=recipe, batch_size=n) for n in (1, 3))
    assert alone.manifest.header() == together.manifest.header()
    for image_id in alone:
        a, b = (one[image_id].embeddings for one in (alone, together))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_it_is_told_apart_from_a_cache_of_crops(
    build: Callable[..., EmbeddingCache], entries: list[dict[str, Any]]
) -> None:
    dense, crops = build(), build("crops", recipe=None)
    assert dense.manifest.teacher == crops.manifest.teacher == tiny_teacher(NATIVE).fingerprint
    assert dense.manifest.recipe == {**RECIPE.describe(), "top_k": None}
    assert "teacher" not in crops.manifest.recipe  # as in caches that were there before
    assert dense.manifest.fingerprint != crops.manifest.fingerprint
    with pytest.raises(CacheError, match="recipe.teacher: 'dense' here, None asked for"):
        build(recipe=None)
    with pytest.raises(CacheError, match="recipe.size: 48 here, 64 asked for"):
        build(recipe=DenseRecipe(64))
    (problem,) = check_compatible(
        dense, teacher_fingerprint="ViT-X-1", embedding_dim=DIM, images=entries
    )
    assert "--teacher dense" in problem
    assert not check_compatible(
        dense,
        teacher_fingerprint=dense.manifest.teacher,
        embedding_dim=DIM,
        images=entries,
    )


def test_a_network_without_dense_features_is_refused_before_anything_is_written(
    build: Callable[..., EmbeddingCache], tmp_path: Path
) -> None:
    from ovd_d2.clip import CLIPTeacher

    resnet = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)
    with pytest.raises(CacheError, match=f"{ARCHITECTURE} cannot embed proposals densely"):
        build(teacher=resnet)
    with pytest.raises(ValueError, match="share no pass"):
        build(batch_size=4)
    assert not (tmp_path / "dense").exists()


def test_a_build_that_died_anywhere_goes_on_to_the_same_bytes(
    build: Callable[..., EmbeddingCache], tmp_path: Path
) -> None:
    whole = build("whole")

    def die(step: int) -> None:
        die_at(step)
        build("torn")

    died = 0
    for step in (3, 7, 12, 20):
        died += exit_code(fork(lambda step=step: die(step))) == CRASHED  # type: ignore[misc]
    assert died > 1
    build("torn")
    assert files_of(tmp_path / "torn") == files_of(whole.path)


@pytest.fixture
def command(
    entries: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """`tools/cache.py` where the tiny ViT is an architecture of open_clip."""
    folder_of_architecture(tmp_path, NATIVE)
    state = {key: value.contiguous() for key, value in tiny_clip(NATIVE).state_dict().items()}
    save_file(state, tmp_path / "vit.safetensors")
    monkeypatch.setitem(DatasetCatalog.data, NAME, lambda: entries)
    main = runpy.run_path(str(TOOLS / "cache.py"))["main"]
    return lambda line: main(line.split())


def test_the_command_builds_and_compares(
    command: Callable[[str], None],
    build: Callable[..., EmbeddingCache],
    proposals: ProposalStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = f"--architecture {NATIVE} --pretrained {tmp_path / 'vit.safetensors'}"
    common = f"--dataset {NAME} --proposals {proposals.path} {teacher} --device cpu"
    dense = "--teacher dense --dense-size 48 --dense-square --dense-window 4 --batch-size 2"
    command(f"build {common} {dense} --output {tmp_path / 'a'}")
    recipe = DenseRecipe(48, square=True, window=4)
    manifest = EmbeddingCache(tmp_path / "a").manifest
    assert manifest.recipe == {**recipe.describe(), "top_k": None}
    words = Vocabulary(
        ("ant", "bee"), torch.eye(DIM)[:2], torch.tensor([False, True]), teacher=manifest.teacher
    )
    words.save(tmp_path / "words.safetensors")
    capsys.readouterr()
    command(f"compare {tmp_path / 'a'} {tmp_path / 'a'} --vocabulary {tmp_path}/words.safetensors")
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split()[:3] == ["all", str(sum(COUNTS.values())), "1.0000"]
    assert shown[2].split()[-1] == "100.0%"


def test_options_that_nobody_would_read_are_refused(
    command: Callable[[str], None], proposals: ProposalStore, tmp_path: Path
) -> None:
    teacher = f"--architecture {NATIVE} --pretrained {tmp_path / 'vit.safetensors'}"
    start = f"build --dataset {NAME} --proposals {proposals.path} {teacher} --device cpu"
    start += f" --output {tmp_path / 'out'}"
    for options, message in (
        ("--teacher dense --resize squash", "--teacher dense does not read --resize"),
        ("--dense-size 64 --dense-square", "does not read --dense-size, --dense-square"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(f"{start} {options}")
        assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_resnet_in_the_command(
    command: Callable[[str], None], proposals: ProposalStore, tmp_path: Path
) -> None:
    line = f"build --dataset {NAME} --proposals {proposals.path} --device cpu --teacher dense "
    line += f"--architecture {ARCHITECTURE} --pretrained {SHIPPED_TAG} --output {tmp_path / 'out'}"
    with pytest.raises((SystemExit, SetupError)) as caught:
        command(line)
    assert "a ViT with a CLS token" in str(caught.value)
    assert not (tmp_path / "out").exists()
