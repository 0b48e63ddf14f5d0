"""Entries of a vocabulary: what their YAML says, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ovd_d2.clip import CLIPTeacher, embed_names
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.vocabulary_builder import vocabulary_of_entries, vocabulary_of_rows
from ovd_d2.data.any_image import as_rgb
from ovd_d2.entries import Entry, Example, entries_of_text, read_entries, with_example
from ovd_d2.errors import SetupError
from ovd_d2.files import sha256_file
from ovd_d2.vocabulary import Categories, Vocabulary

YAML = """
- name: red anchor
  synonyms: [mooring]
  descriptions: [a heavy hook that holds a ship]
  examples: [a.png, {image: a.png, box: [2, 3, 20, 30]}]
  novel: true
- snowman
"""


def read_image(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "mine.yaml").write_text(YAML)
    return tmp_path / "mine.yaml"


def test_a_yaml_file(yaml_file: Path) -> None:
    image = str(yaml_file.parent / "a.png")
    assert read_entries(yaml_file) == [
        Entry(
            "red anchor",
            ("mooring",),
            ("a heavy hook that holds a ship",),
            (Example(image), Example(image, (2.0, 3.0, 20.0, 30.0))),
            novel=True,
        ),
        Entry("snowman"),
    ]


def test_what_an_entry_is_made_of(yaml_file: Path, tiny_teacher: CLIPTeacher) -> None:
    entries = read_entries(yaml_file)
    made = vocabulary_of_entries(
        entries, tiny_teacher, read_image, prompts="single", example_weight=0.25
    )
    text = embed_names(["red anchor", "mooring"], tiny_teacher, "single")
    said = tiny_teacher.encode_text(["a heavy hook that holds a ship"])
    words = F.normalize(text + said, dim=1)
    boxes = torch.tensor([[0.0, 0, 30, 40], [2, 3, 20, 30]])
    crops = embed_proposals(read_image(str(yaml_file.parent / "a.png")), boxes, tiny_teacher)
    seen = F.normalize(crops.mean(dim=0), dim=0)
    expected = F.normalize(0.75 * words + 0.25 * seen, dim=1)
    torch.testing.assert_close(made.embeddings[:1], expected[:1])
    torch.testing.assert_close(made.synonym_embeddings, expected[1:])
    torch.testing.assert_close(
        made.embeddings[1:], embed_names(["snowman"], tiny_teacher, "single")
    )
    assert made.novel.tolist() == [True, False] and made.synonyms == [["mooring"], []]
    digest = sha256_file(yaml_file.parent / "a.png")
    assert made.sources == [
        {
            "descriptions": ["a heavy hook that holds a ship"],
            "examples": [
                {"sha256": digest, "box": None},
                {"sha256": digest, "box": [2.0, 3.0, 20.0, 30.0]},
            ],
            "example_weight": 0.25,
        },
        {},
    ]


def test_an_example_may_be_the_content_of_a_file(
    yaml_file: Path, tiny_teacher: CLIPTeacher
) -> None:
    file, box = yaml_file.parent / "a.png", (2.0, 3.0, 20.0, 30.0)
    made = [
        vocabulary_of_entries([Entry("x", examples=(Example(image, box),))], tiny_teacher, as_rgb)
        for image in (str(file), file.read_bytes())
    ]
    assert made[0].to_bytes() == made[1].to_bytes()


def test_entries_that_are_typed() -> None:
    assert entries_of_text("red anchor, sofa | couch") == [
        Entry("red anchor"),
        Entry("sofa", ("couch",)),
    ]
    one, other = Example("a.png"), Example("b.png")
    entries = with_example([Entry("sofa", ("couch",))], "sofa", one)
    assert with_example(with_example(entries, "kite", one), "sofa", other) == [
        Entry("sofa", ("couch",), examples=(one, other)),
        Entry("kite", examples=(one,)),
    ]


def test_it_comes_back_from_its_file(yaml_file: Path, tiny_teacher: CLIPTeacher) -> None:
    made = vocabulary_of_entries(read_entries(yaml_file), tiny_teacher, read_image)
    made.save(yaml_file.parent / "v.safetensors")
    read = Vocabulary.load(yaml_file.parent / "v.safetensors")
    assert read.to_bytes() == made.to_bytes()
    assert read.words == ["red anchor", "snowman", "mooring"]
    assert read.owners.tolist() == [0, 1, 0] and read.sources == made.sources
    swapped = read.select(["snowman", "red anchor"])
    assert swapped.owners.tolist() == [0, 1, 1] and swapped.synonyms == [[], ["mooring"]]
    assert torch.equal(swapped.synonym_embeddings, made.synonym_embeddings)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: x", "holds .*expected a list"),
        ("- {name: x, descripton: [a]}", "entry 1: unknown key 'descripton'"),
        ("- a\n- yes", "entry 2: is True, expected 'name: ...'"),
        ("- {name: 3}", "entry 1: 'name' is 3, expected a text"),
        ("- {name: x, novel: 1}", "'novel' of 'x' is 1, expected true or false"),
        ("- {name: x, synonyms: y}", "'synonyms' is 'y', expected a list of texts"),
        ("- {name: x, examples: [{image: a, box: [1, 2, 1, 3]}]}", "box .*x1 < x2"),
        ("- {name: x, examples: [3]}", "example 3, expected a file"),
        ("- [", "not YAML"),
    ],
)
def test_a_yaml_file_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SetupError, match=message):
        read_entries(tmp_path / "mine.yaml")


def test_examples_that_cannot_be(yaml_file: Path, tiny_teacher: CLIPTeacher) -> None:
    image = str(yaml_file.parent / "a.png")
    outside = Entry("x", examples=(Example(image, (0.0, 0.0, 31.0, 9.0)),))
    with pytest.raises(SetupError, match="outside of its 30 x 40 px"):
        vocabulary_of_entries([outside], tiny_teacher, read_image)
    with pytest.raises(SetupError, match="example weight 2: expected a number between 0 and 1"):
        vocabulary_of_entries([outside], tiny_teacher, read_image, example_weight=2)


def test_embeddings_that_somebody_else_made(tiny_teacher: CLIPTeacher) -> None:
    rows = np.random.default_rng(0).normal(size=(2, tiny_teacher.embedding_dim))
    categories = Categories(["a", "b"], [False, True])
    made = vocabulary_of_rows(categories, rows, tiny_teacher, "single")
    assert made.teacher == tiny_teacher.fingerprint and made.background is not None
    torch.testing.assert_close(made.embeddings.norm(dim=1), torch.ones(2))
    with pytest.raises(SetupError, match=r"expected floats \(2, .*; transpose it"):
        vocabulary_of_rows(categories, rows.T, tiny_teacher, "single")
    rows[0, 0] = np.nan
    with pytest.raises(SetupError, match="hold NaN"):
        vocabulary_of_rows(categories, rows, tiny_teacher, "single")


def test_a_file_of_the_first_schema_still_loads() -> None:
    made = Vocabulary(["a", "b"], torch.eye(2, 4), teacher="t", prompts="single")
    old = made.to_bytes().replace(b"ovd_d2.vocabulary/2", b"ovd_d2.vocabulary/1")
    read = Vocabulary.from_bytes(old)
    assert read.names == ["a", "b"] and read.synonyms == [[], []] and read.sources is None


def test_words_alone_come_back() -> None:
    made = Vocabulary.of_names(Categories(["sofa", "cat"], [True, False]), [["couch"], []])
    read = Vocabulary.from_bytes(made.to_bytes())
    assert read.words == ["sofa", "cat", "couch"] and read.novel.tolist() == [True, False]
    assert read.embedding_dim == 0 and read.owners.tolist() == [0, 1, 0]


def test_synonyms_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'couch'; names must be distinct"):
        Vocabulary.of_names(Categories(["sofa", "couch"], [True, False]), [["couch"], []])
    with pytest.raises(ValueError, match=r"synonym_embeddings must have shape \(1, 4\)"):
        Vocabulary(["sofa"], torch.eye(1, 4), synonyms=[["couch"]])
    with pytest.raises(TypeError, match="a string in place of one"):
        Vocabulary.of_names(Categories(["sofa"], [True]), ["couch"])


def test_a_name_longer_than_the_context(tiny_teacher: CLIPTeacher) -> None:
    context = tiny_teacher._tokenizer(["a"]).shape[1]
    assert tiny_teacher.cut_off("a red anchor.") == ""
    sentence = " ".join(["anchor"] * (context + 5)) + " lost"
    assert tiny_teacher.cut_off(sentence).endswith("anchor lost")
