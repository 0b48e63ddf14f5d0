"""From names to a vocabulary file, by the function and by the command."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.clip import CLIPTeacher, embed_names, embed_synonyms
from ovd_d2.clip.vocabulary_builder import build_vocabulary, novel_flags, read_names
from ovd_d2.vocabulary import Vocabulary

TOOL = Path(__file__).parents[2] / "tools" / "build_vocabulary.py"


def test_vocabulary_carries_teacher_and_prompts(tiny_teacher: CLIPTeacher) -> None:
    names = ["star", "red_anchor"]
    vocabulary = build_vocabulary(names, tiny_teacher, is_novel=[False, True], prompts="clip7")
    assert vocabulary.names == names
    assert vocabulary.novel.tolist() == [False, True]
    assert (vocabulary.teacher, vocabulary.prompts) == (tiny_teacher.fingerprint, "clip7")
    torch.testing.assert_close(vocabulary.embeddings, embed_names(names, tiny_teacher, "clip7"))
    assert not torch.allclose(vocabulary.embeddings, embed_names(names, tiny_teacher, "single"))


def test_synonyms_are_averaged_in_and_said(tiny_teacher: CLIPTeacher) -> None:
    names, synonyms = ["star", "anchor"], [["star", "asterisk"], ["anchor"]]
    vocabulary = build_vocabulary(names, tiny_teacher, synonyms=synonyms, prompts="single")
    assert vocabulary.names == names
    assert vocabulary.prompts == "single, synonyms"
    torch.testing.assert_close(
        vocabulary.embeddings, embed_synonyms(synonyms, tiny_teacher, "single")
    )
    alone = build_vocabulary(names, tiny_teacher, synonyms=[["star"], ["anchor"]], prompts="single")
    assert alone.prompts == "single"
    torch.testing.assert_close(alone.embeddings[1], vocabulary.embeddings[1])
    assert not torch.allclose(alone.embeddings[0], vocabulary.embeddings[0])


def test_read_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("# my words\nred anchor\n\n  café table \r\n", encoding="utf-8")
    assert read_names(path) == ["red anchor", "café table"]
    path.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="holds no name"):
        read_names(path)
    with pytest.raises(FileNotFoundError, match="none.txt"):
        read_names(tmp_path / "none.txt")


def test_novel_flags() -> None:
    assert novel_flags(["a", "b", "c"], ["c", "a"]) == [True, False, True]
    with pytest.raises(ValueError, match="not in the vocabulary: d"):
        novel_flags(["a", "b"], ["d"])


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_command(
    tmp_path: Path,
    tiny_teacher: CLIPTeacher,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "names.txt").write_text("star\nanchor\n")
    (tmp_path / "novel.txt").write_text("anchor\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    output = "datasets://mine/vocabulary.safetensors"
    sources = ["--names-file", str(tmp_path / "names.txt"), "--novel-file"]
    teacher = ["--architecture", tiny_teacher.architecture, "--pretrained", str(tiny_weights)]
    run_tool(monkeypatch, *sources, str(tmp_path / "novel.txt"), *teacher, "--output", output)
    vocabulary = Vocabulary.load(tmp_path / "mine" / "vocabulary.safetensors")
    assert vocabulary.names == ["star", "anchor"]
    assert vocabulary.novel.tolist() == [False, True]
    assert tiny_teacher.fingerprint in capsys.readouterr().out


@pytest.mark.parametrize(("choice", "said"), [("all", "single, synonyms"), ("first", "single")])
def test_command_with_synonyms(
    choice: str,
    said: str,
    tmp_path: Path,
    tiny_teacher: CLIPTeacher,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    annotations = tmp_path / "mine.json"
    category = {"id": 1, "name": "star", "synonyms": ["star", "asterisk"]}
    annotations.write_text(json.dumps({"images": [], "annotations": [], "categories": [category]}))
    DatasetCatalog.register("with_synonyms", list)
    MetadataCatalog.get("with_synonyms").json_file = str(annotations)
    output = tmp_path / "vocabulary.safetensors"
    teacher = ["--architecture", tiny_teacher.architecture, "--pretrained", str(tiny_weights)]
    options = ["--prompts", "single", "--synonyms", choice, "--output", str(output)]
    try:
        run_tool(monkeypatch, "--dataset", "with_synonyms", *teacher, *options)
    finally:
        DatasetCatalog.remove("with_synonyms")
        MetadataCatalog.remove("with_synonyms")
    assert Vocabulary.load(output).prompts == said


def test_command_needs_a_source_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "--output", "x")
    with pytest.raises(SystemExit):
        run_tool(
            monkeypatch, "--dataset", "pictograms_v1_val", "--novel-file", "n", "--output", "x"
        )
