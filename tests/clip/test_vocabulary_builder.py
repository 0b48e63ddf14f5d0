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
from ovd_d2.clip.teacher import _check_activation
from ovd_d2.clip.vocabulary_builder import (
    build_vocabulary,
    novel_flags,
    prompt_family,
    read_names,
)
from ovd_d2.vocabulary import Categories, Vocabulary

TOOL = Path(__file__).parents[2] / "tools" / "build_vocabulary.py"


def test_vocabulary_carries_teacher_and_prompts(tiny_teacher: CLIPTeacher) -> None:
    names = ["star", "red_anchor"]
    vocabulary = build_vocabulary(Categories(names, [False, True]), tiny_teacher, prompts="clip7")
    assert vocabulary.names == names
    assert vocabulary.novel.tolist() == [False, True]
    assert (vocabulary.teacher, vocabulary.prompts) == (tiny_teacher.fingerprint, "clip7")
    torch.testing.assert_close(vocabulary.embeddings, embed_names(names, tiny_teacher, "clip7"))
    assert not torch.allclose(vocabulary.embeddings, embed_names(names, tiny_teacher, "single"))


def test_synonyms_are_averaged_in_and_said(tiny_teacher: CLIPTeacher) -> None:
    names, synonyms = ["star", "anchor"], [["star", "asterisk"], ["anchor"]]
    several = Categories(names, [False, False], synonyms=synonyms)
    vocabulary = build_vocabulary(several, tiny_teacher, prompts="single")
    assert vocabulary.names == names
    assert vocabulary.prompts == "single, synonyms"
    torch.testing.assert_close(
        vocabulary.embeddings, embed_synonyms(synonyms, tiny_teacher, "single")
    )
    single = Categories(names, [False, False], synonyms=[["star"], ["anchor"]])
    alone = build_vocabulary(single, tiny_teacher, prompts="single")
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


def test_names_written_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("ant\r\nbee\r\n".encode("utf-8-sig"))
    assert read_names(path) == ["ant", "bee"]
    path.write_bytes("ant\r\nbee\r\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"names\.txt is not UTF-8 text \(byte 0xff .*UTF-16"):
        read_names(path)


def test_equal_names_are_found_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("ant\n# more\nbee\n\n ant \n")
    with pytest.raises(ValueError, match=r"names\.txt: 'ant' is on line 1 and again on line 5"):
        read_names(path)


@pytest.mark.parametrize(
    ("written", "configured", "expected", "warned"),
    [
        ("vild63, synonyms", "single", "vild63", True),
        ("clip7", "clip7", "clip7", False),
        ("", "single", "single", False),
        ("my own", "single", "single", True),
    ],
)
def test_new_names_get_the_vocabularys_prompts(
    written: str,
    configured: str,
    expected: str,
    warned: bool,
    tiny_teacher: CLIPTeacher,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vocabulary = build_vocabulary(Categories(["star"], [False]), tiny_teacher, prompts="single")
    vocabulary.prompts = written
    assert prompt_family(vocabulary, configured) == expected
    assert bool(caplog.records) == warned
    assert prompt_family(None, configured) == configured


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


def test_command_takes_the_teacher_of_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("star\nanchor\n")
    config = tmp_path / "mine.yaml"
    config.write_text(
        "MODEL: {OVD: {TEACHER: {ARCHITECTURE: Pictogram-RN, PRETRAINED: shipped-base, "
        "PROMPTS: clip7}}}"
    )
    output = tmp_path / "vocabulary.safetensors"
    names = ["--names-file", str(tmp_path / "names.txt"), "--output", str(output)]
    run_tool(monkeypatch, *names, "--config-file", str(config))
    vocabulary = Vocabulary.load(output)
    expected = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped-base").fingerprint
    assert (vocabulary.teacher, vocabulary.prompts) == (expected, "clip7")
    config.write_text("MODEL: {OVD: {TEACHER: {ARCHITECTURE: Pictogram-RN, PRETRAINED: gone.pt}}}")
    with pytest.raises(SystemExit, match=r"mine\.yaml: MODEL\.OVD\.TEACHER: .*gone\.pt"):
        run_tool(monkeypatch, *names, "--config-file", str(config))


def test_command_takes_all_from_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, output = tmp_path / "mine.json", tmp_path / "vocabulary.safetensors"
    category = {"id": 1, "name": "star"}
    annotations.write_text(json.dumps({"images": [], "annotations": [], "categories": [category]}))
    DatasetCatalog.register("of_a_config", list)
    MetadataCatalog.get("of_a_config").json_file = str(annotations)
    teacher = "TEACHER: {ARCHITECTURE: Pictogram-RN, PRETRAINED: shipped, PROMPTS: single}"

    def run(vocabulary: str, sets: str) -> None:
        config = tmp_path / "mine.yaml"
        ovd = f"MODEL: {{OVD: {{VOCABULARY: '{vocabulary}', {teacher}}}}}"
        config.write_text(f"{ovd}\nDATASETS: {{TRAIN: [{sets}]}}\n")
        run_tool(monkeypatch, "--config-file", str(config))

    try:
        run(str(output), "of_a_config")
        with pytest.raises(SystemExit, match=r"TRAIN has 2 data sets \(a, b\): give --dataset"):
            run(str(output), "a, b")
        with pytest.raises(SystemExit, match="MODEL.OVD.VOCABULARY is empty: give --output"):
            run("", "of_a_config")
    finally:
        DatasetCatalog.remove("of_a_config")
        MetadataCatalog.remove("of_a_config")
    assert Vocabulary.load(output).names == ["star"]


def test_command_says_that_the_shipped_teacher_is_for_drawings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "names.txt").write_text("ant\n")
    output = tmp_path / "vocabulary.safetensors"
    names = ["--names-file", str(tmp_path / "names.txt"), "--output", str(output)]
    run_tool(monkeypatch, *names, "--architecture", "Pictogram-RN", "--pretrained", "shipped")
    assert not caplog.records
    run_tool(monkeypatch, *names)
    assert "which knows drawn glyphs only" in caplog.text
    assert Vocabulary.load(output).names == ["ant"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--architecture", "ViT-B-32"],
        ["--config-file", "a.yaml", "--architecture", "RN50", "--pretrained", "openai"],
    ],
)
def test_command_wants_the_whole_of_a_teacher(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool(monkeypatch, "--names-file", "names.txt", "--output", "x", *arguments)
    assert caught.value.code == 2


def test_the_example_of_the_help_is_a_pair_that_fits() -> None:
    example = runpy.run_path(str(TOOL))["EXAMPLE"].replace("\\\n", " ").split()
    architecture = example[example.index("--architecture") + 1]
    pretrained = example[example.index("--pretrained") + 1]
    _check_activation(architecture, pretrained)
