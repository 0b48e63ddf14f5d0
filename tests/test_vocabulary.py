"""Vocabulary: checks on construction, the file on disk, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovd_d2.vocabulary import Categories, Vocabulary

EMBEDDINGS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
NAMES = ["red anchor", "chess knight", "fleur-de-lis (é)"]


def make() -> Vocabulary:
    novel = torch.tensor([False, True, False])
    return Vocabulary(NAMES, EMBEDDINGS, novel, teacher="RN-0123", prompts="single")


def test_attributes_and_index() -> None:
    vocabulary = make()
    assert len(vocabulary) == 3
    assert vocabulary.embedding_dim == 2
    assert vocabulary.index("chess knight") == 1
    with pytest.raises(KeyError, match="'king' is not among the 3 names"):
        vocabulary.index("king")


def test_novel_defaults_to_base_only() -> None:
    assert Vocabulary(NAMES, EMBEDDINGS).novel.tolist() == [False, False, False]


def test_one_category_is_enough() -> None:
    assert len(Vocabulary(["star"], torch.tensor([[0.0, -1.0]]))) == 1


def test_keeps_its_own_copy() -> None:
    embeddings = EMBEDDINGS.clone()
    vocabulary = Vocabulary(NAMES, embeddings)
    embeddings.zero_()
    assert torch.equal(vocabulary.embeddings, EMBEDDINGS)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "vocabulary.safetensors"
    make().save(path)
    loaded = Vocabulary.load(path)
    assert loaded.names == NAMES
    assert torch.equal(loaded.embeddings, EMBEDDINGS)
    assert loaded.novel.tolist() == [False, True, False]
    assert (loaded.teacher, loaded.prompts) == ("RN-0123", "single")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_background_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.safetensors"
    Vocabulary(NAMES, EMBEDDINGS, background=torch.tensor([0.0, 1.0])).save(path)
    background = Vocabulary.load(path).background
    assert background is not None and background.tolist() == [0.0, 1.0]
    make().save(path)
    assert Vocabulary.load(path).background is None


@pytest.mark.parametrize("background", [torch.ones(3), torch.ones(2)])
def test_background_must_be_one_unit_row(background: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"background must have shape \(2,\)|'background'"):
        Vocabulary(NAMES, EMBEDDINGS, background=background)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "names 0 and 2 are equal: 'a'"),
        (["a", " ", "c"], "name 1 is blank"),
        (["a", "b"], r"shape \(2, D\).*got \(3, 2\)"),
        ([], "at least one name"),
    ],
)
def test_refuses_names(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(names, EMBEDDINGS)


def test_refuses_one_string_as_names() -> None:
    with pytest.raises(TypeError, match="one string 'abc'"):
        Vocabulary("abc", EMBEDDINGS)


def test_refuses_bad_embeddings() -> None:
    broken = EMBEDDINGS.clone()
    broken[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity, first in row 1 \('chess knight'\)"):
        Vocabulary(NAMES, broken)
    with pytest.raises(ValueError, match=r"row 2 .* has norm 1\.0020"):
        Vocabulary(NAMES, EMBEDDINGS * torch.tensor([[1.0], [1.0], [1.002]]))
    with pytest.raises(TypeError, match=r"float32, got torch\.float64"):
        Vocabulary(NAMES, EMBEDDINGS.double())


def test_refuses_bad_novel() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\).*got \(2,\)"):
        Vocabulary(NAMES, EMBEDDINGS, torch.tensor([True, False]))
    with pytest.raises(TypeError, match=r"bool tensor, got torch\.int64"):
        Vocabulary(NAMES, EMBEDDINGS, torch.tensor([1, 0, 1]))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        Vocabulary.load(tmp_path / "none.safetensors")


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"v\.safetensors: damaged"):
        Vocabulary.load(path)


def test_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"embeddings": EMBEDDINGS}, str(path))
    with pytest.raises(ValueError, match=r"other\.safetensors: not a vocabulary"):
        Vocabulary.load(path)


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.safetensors"
    make().save(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary(["x"], torch.tensor([[1.0]])).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_equal_vocabularies_have_equal_bytes() -> None:
    assert len({make().to_bytes() for _ in range(20)}) == 1
    assert Vocabulary.from_bytes(make().to_bytes()).names == make().names


def test_categories():
    known = Categories(["a", "b"], [True, False], [7, 3])
    assert (len(known), known.name_of, known.novel_ids) == (2, {7: "a", 3: "b"}, {7})
    assert Categories(["a", "b"], [True, False]).ids == [0, 1]
    assert Vocabulary(NAMES, EMBEDDINGS).categories == Categories(NAMES, [False] * 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"novel": [True]}, "1 novel flags for 2 categories"),
        ({"ids": [1]}, "1 ids for 2"),
        ({"frequencies": []}, "0 frequencies for 2"),
        ({"synonyms": [["a"]]}, "1 synonyms for 2"),
    ],
)
def test_categories_of_unequal_lengths(values, message):
    with pytest.raises(ValueError, match=message):
        Categories(**{"names": ["a", "b"], "novel": [True, False], **values})
