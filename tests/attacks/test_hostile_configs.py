"""Configs and lists of data sets in yaml: no object is made of a tag, no alias fills the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovd_d2.data.own import register_own
from ovd_d2.engine.run import load_config
from tests.attacks.hostile import refused

# Ten lines that stand for 10**9 names, or for as many keys.
WORDS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10)
)
KEYS = "a0: &a0 {" + ", ".join(f"k{j}: x" for j in range(10)) + "}\n" + "".join(
    f"a{k}: &a{k} {{{', '.join(f'k{j}: *a{k - 1}' for j in range(10))}}}\n" for k in range(1, 10)
)  # fmt: skip
TAGS = {
    "apply": '!!python/object/apply:os.system ["touch MARKER"]',
    "new": '!!python/object/new:os.system ["touch MARKER"]',
    "module": "!!python/module:antigravity",
    "name": "!!python/name:os.system",
    "tuple": '!!python/tuple [!!python/object/apply:os.system ["touch MARKER"]]',
}
BOMBS = {
    "a billion words": WORDS,
    "a billion keys": KEYS,
    "brackets": "MODEL: " + "[" * 20_000 + "]" * 20_000,
    "digits": "SOLVER: {MAX_ITER: " + "7" * 5_000 + "}",
    "a list that holds itself": "MODEL: &a [*a]",
    "a key that holds itself": "MODEL: &a {OVD: *a}",
    "garbage": "\x00\x01\x02",
    "a text": "just a text",
    "a list": "[MODEL]",
}


def write(folder: Path, text: str) -> Path:
    path = folder / "hostile.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_tags_in_a_config(tmp_path: Path, marker: Path, tag: str) -> None:
    path = write(tmp_path, f"OUTPUT_DIR: {tag.replace('MARKER', str(marker))}\n")
    refused(lambda: load_config(str(path)), path)


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_tags_in_the_base_of_a_config(tmp_path: Path, marker: Path, tag: str) -> None:
    write(tmp_path, f"OUTPUT_DIR: {tag.replace('MARKER', str(marker))}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: hostile.yaml\n")
    refused(lambda: load_config(str(tmp_path / "mine.yaml")), "mine.yaml")


def test_options_are_no_code(tmp_path: Path, marker: Path) -> None:
    path = write(tmp_path, "VERSION: 2\n")
    call = f"__import__('os').system('touch {marker}')"
    folder = load_config(str(path), ["OUTPUT_DIR", call]).OUTPUT_DIR
    assert folder == call
    refused(lambda: load_config(str(path), ["SOLVER.BASE_LR", call]), path)
    refused(lambda: load_config(str(path), ["SOLVER.BASE_LR", "(" * 1_000]), path)


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_config_that_would_fill_the_memory(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    refused(lambda: load_config(str(path)), path)


def test_a_config_that_is_its_own_base(tmp_path: Path) -> None:
    path = write(tmp_path, "_BASE_: hostile.yaml\n")
    refused(lambda: load_config(str(path)), path)


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_tags_in_a_list_of_data_sets(tmp_path: Path, marker: Path, tag: str) -> None:
    text = f"mine: {{json_file: {tag}, image_root: x}}\n"
    path = write(tmp_path, text.replace("MARKER", str(marker)))
    refused(lambda: register_own(path), path)


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_list_of_data_sets_that_would_fill_the_memory(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    refused(lambda: register_own(path), path)


def test_a_list_of_data_sets_with_a_billion_base_names(tmp_path: Path) -> None:
    path = write(tmp_path, WORDS + "mine: {json_file: x, image_root: y, base: *a9}\n")
    refused(lambda: register_own(path), path)
