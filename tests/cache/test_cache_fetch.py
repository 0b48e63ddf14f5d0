"""Stores behind a handler that, as `https://` does, fetches single files and knows no folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ovd_d2.cache import CacheError, EmbeddingCache, identity_problems, verify_store

PREFIX = "far://"


class FarHandler(PathHandler):
    def __init__(self, source: Path, target: Path) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.scattered = False
        self.fetched: list[str] = []

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path[len(PREFIX) :]
        local = self.target / name
        if self.scattered:
            local = local.with_name(f"only-{local.name}") / local.name
        if not local.exists():
            local.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source / name, local)  # OSError for a folder or nothing
            self.fetched.append(os.path.basename(name))
        return str(local)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHandler]:
    handler = FarHandler(tmp_path / "source", tmp_path / "fetched")
    PathManager.register_handler(handler, allow_override=True)
    yield handler
    del PathManager._path_handlers[PREFIX]


def test_a_remote_store_is_fetched_once(
    far: FarHandler, build: Callable, make_record: Callable
) -> None:
    build(far.source / "toy")
    cache = EmbeddingCache("far://toy/")
    assert far.fetched == [
        "manifest.json",
        "index.safetensors",
        *(f"shard-n002-0000{number}.safetensors" for number in range(3)),
        "images.json",
    ]
    assert torch.equal(cache[3].boxes, make_record(3)["boxes"])
    assert len(EmbeddingCache("far://toy")) == 5
    assert verify_store("far://toy") == []
    assert len(far.fetched) == 6


def test_the_list_of_images_is_fetched_too(
    far: FarHandler, build: Callable, make_images: Callable
) -> None:
    build(far.source / "toy")
    (problem,) = identity_problems(EmbeddingCache("far://toy"), make_images([2], height=600))
    assert "image 2 was 2.png (41 x 33), is 2.png (600 x 33)" in problem


def test_what_cannot_be_fetched_is_named(far: FarHandler, build: Callable) -> None:
    build(far.source / "toy")
    (far.source / "toy" / "shard-n002-00001.safetensors").unlink()
    with pytest.raises(CacheError, match="far://toy/shard-n002-00001.* cannot be fetched"):
        EmbeddingCache("far://toy")
    assert "far://nowhere/manifest.json cannot be fetched" in verify_store("far://nowhere")[0]


def test_a_store_that_changed_at_its_source_is_not_mixed(far: FarHandler, build: Callable) -> None:
    build(far.source / "toy")
    EmbeddingCache("far://toy")
    shutil.rmtree(far.source / "toy")
    build(far.source / "toy", range(5, 10))
    (far.target / "toy" / "shard-n002-00001.safetensors").unlink()  # this one is fetched anew
    problems = verify_store("far://toy")
    assert any("shard-n002-00001.safetensors" in problem for problem in problems)


def test_a_handler_that_scatters_files_is_refused(far: FarHandler, build: Callable) -> None:
    build(far.source / "toy")
    far.scattered = True
    with pytest.raises(CacheError, match="copy the store into one local folder"):
        EmbeddingCache("far://toy")
