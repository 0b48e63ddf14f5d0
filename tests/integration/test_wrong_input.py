"""Tools that read no config say what is wrong with their arguments, without a traceback."""

from pathlib import Path

import pytest

from tests.programs import run_program


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("build_vocabulary --names-file no/names.txt --output x", "names not found: no/names.txt"),
        ("build_vocabulary --dataset no_such_set --output x", "'no_such_set' is not registered"),
        (
            "build_vocabulary --names-file NAMES --pretrained no/weights.pt --output x",
            "teacher weights not found: no/weights.pt",
        ),
        (
            "convert_clip_backbone --architecture ViT-X --pretrained openai --output x",
            "unknown open_clip architecture 'ViT-X'",
        ),
        ("train_pictogram_clip --evaluate no/weights.pt", "teacher weights not found"),
    ],
)
def test_the_last_word_is_the_message(command: str, said: str, tmp_path: Path):
    (tmp_path / "names.txt").write_text("red anchor\n")
    tool, *arguments = command.replace("NAMES", str(tmp_path / "names.txt")).split()
    done = run_program(f"tools/{tool}.py", *arguments)
    assert done.status == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
