from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "setup_environment.py"


@pytest.fixture
def tool(tmp_path: Path) -> ModuleType:
    """A fresh module whose stamp lies in the test's folder."""
    spec = importlib.util.spec_from_file_location("setup_environment", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.STAMP = tmp_path / "stamp.json"
    return module


@pytest.fixture
def steps(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The steps that a set-up takes, recorded instead of carried out."""
    taken: list[tuple[str, ...]] = []
    monkeypatch.setattr(tool, "step", lambda title, *arguments: taken.append(arguments))
    monkeypatch.setattr(tool, "install_detectron2", lambda: taken.append(("detectron2",)))
    monkeypatch.setattr(tool, "has_opencv", lambda: False)
    monkeypatch.setattr(tool, "ensure_uv", lambda: None)
    monkeypatch.setattr(tool, "first_import", lambda: None)
    return taken


@pytest.fixture
def commands(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that are run; those of uv fail, the others do nothing."""
    run: list[tuple[str, ...]] = []

    def record(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        run.append(tuple(command))
        return subprocess.CompletedProcess(command, int("uv" in command))

    monkeypatch.setattr(tool.subprocess, "run", record)
    return run


def requirement_lines() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def setup_keyword(name: str) -> Any:
    tree = ast.parse((ROOT / "setup.py").read_text())
    keywords = {node.arg: node.value for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    return ast.literal_eval(keywords[name])


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (2, 7)])
def test_other_pythons_are_refused(tool: ModuleType, version: tuple[int, int]) -> None:
    with pytest.raises(
        tool.SetupError, match=rf"Python {version[0]}\.{version[1]}.*3\.10 to 3\.12"
    ):
        tool.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_these_pythons_are_accepted(tool: ModuleType, version: tuple[int, int]) -> None:
    tool.check_python(version)


def test_requirements_by_name(tool: ModuleType) -> None:
    text = '# comment\n\nlvis==1  # why\nA_b>=2; python_version < "3.11"\na_b==3\n'
    pins = tool.parse_requirements(text)
    assert pins == {"lvis": "lvis==1", "a_b": 'A_b>=2; python_version < "3.11"\na_b==3'}
    assert tool.plain_pins(pins) == ['A_b>=2; python_version < "3.11"', "a_b==3"]


def test_order_of_the_steps(tool: ModuleType, steps: list[tuple[str, ...]]) -> None:
    assert tool.main([]) == 0
    requirements, opencv, lvis, detectron2, package = steps
    assert not any(entry.startswith("uv") for entry in requirements)
    assert "torch==2.11.0" in requirements
    assert not any(entry.startswith(("opencv", "lvis")) for entry in requirements)
    assert opencv[0].startswith("opencv-python-headless==")
    assert lvis == ("--no-deps", "lvis==0.5.3")
    assert detectron2 == ("detectron2",)
    assert package[-1] == str(ROOT) and "--editable" in package


def test_opencv_that_is_there_is_kept(
    tool: ModuleType, steps: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "has_opencv", lambda: True)
    tool.set_up()
    assert not any(entry.startswith("opencv") for arguments in steps for entry in arguments)


def test_second_call_skips_until_an_input_changes(
    tool: ModuleType, steps: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = tmp_path / "requirements.txt"
    changing.write_text("a==1\n")
    monkeypatch.setattr(tool, "INPUTS", (changing,))
    monkeypatch.setattr(tool, "MODULES", ("json",))
    assert tool.main([]) == 0
    done = len(steps)
    assert tool.main([]) == 0 and len(steps) == done
    assert tool.main(["--force"]) == 0 and len(steps) == 2 * done
    changing.write_text("a==2\n")
    assert tool.main([]) == 0 and len(steps) == 3 * done


def test_the_lowest_versions_are_those_of_setup_py(
    tool: ModuleType, steps: list[tuple[str, ...]]
) -> None:
    assert tool.main(["--lowest"]) == 0
    requirements = steps[0]
    lower = {
        Requirement(text).name: next(
            one.version for one in Requirement(text).specifier if one.operator == ">="
        )
        for text in setup_keyword("install_requires")
    }
    for name, version in lower.items():
        (pin,) = [entry for taken in steps for entry in taken if entry.startswith(f"{name}==")]
        assert pin == f"{name}=={version}"
    assert f"torch=={lower['torch']}" in requirements
    assert "opencv-python-headless==4.10.0.84" in steps[1]
    (pytest_pin,) = [entry for entry in requirements if entry.startswith("pytest==")]
    assert pytest_pin == "pytest==8"
    fvcore, antlr = tool.SOURCE_ONLY
    built = ("--no-binary", fvcore, "--no-binary", antlr)
    assert requirements[:6] == ("--only-binary", ":all:", *built)


def test_pinned_and_lowest_versions_are_different_set_ups(
    tool: ModuleType, steps: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "MODULES", ("json",))
    assert tool.main([]) == 0
    done = len(steps)
    assert tool.main(["--lowest"]) == 0 and len(steps) == 2 * done
    assert tool.main(["--lowest"]) == 0 and len(steps) == 2 * done


def test_a_range_without_lower_bound_is_refused(tool: ModuleType) -> None:
    text = "setup(install_requires=['a>=1,<2', 'b<3'], extras_require={'dev': ['c>=4.5', 'd']})"
    with pytest.raises(tool.SetupError, match=r"'b<3' has no lower bound"):
        tool.lowest_pins(text)
    pins = tool.lowest_pins(text.replace("b<3", "B>=2.post1"))
    assert pins == {"a": "a==1", "b": "B==2.post1", "c": "c==4.5"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inputs": "other"}'])
def test_damaged_stamp_counts_as_none(tool: ModuleType, content: str) -> None:
    tool.STAMP.write_text(content)
    assert not tool.up_to_date()


def test_missing_module_makes_it_out_of_date(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "MODULES", ("json",))
    tool.write_stamp()
    assert tool.up_to_date()
    monkeypatch.setattr(tool, "MODULES", ("json", "no_such_module_here"))
    assert not tool.up_to_date()


def test_failing_pip_leaves_no_stamp(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: failed)
    assert tool.main([]) == 1
    assert "requirements" in capsys.readouterr().err
    assert not tool.STAMP.exists()


def test_pip_installs_where_uv_fails_and_it_is_said(
    tool: ModuleType,
    commands: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "has_uv", lambda: True)
    tool.step("lvis", "lvis==1")
    assert [command[:4] for command in commands] == [tool.UV[:4], tool.PIP[:4]]
    assert all(command[-1] == "lvis==1" for command in commands)
    assert "uv failed (above); pip installs lvis" in capsys.readouterr().out


def test_uv_alone_installs_where_it_works(
    tool: ModuleType, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "has_uv", lambda: True)
    monkeypatch.setattr(tool, "UV", ("works",))
    tool.step("lvis", "lvis==1")
    assert [command[0] for command in commands] == ["works"]


def test_uv_is_installed_at_its_pin_unless_it_is_there(
    tool: ModuleType, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"uv": "0.0.1"}
    monkeypatch.setattr(tool.importlib.metadata, "version", versions.__getitem__)
    tool.ensure_uv()
    (command,) = commands
    assert command[:4] == tool.PIP[:4] and command[-1] == tool.pinned_uv()
    versions["uv"] = command[-1].removeprefix("uv==")
    tool.ensure_uv()
    assert len(commands) == 1


def test_missing_uv_is_said(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(tool, "has_uv", lambda: False)
    tool.ensure_uv()
    assert f"{tool.pinned_uv()} cannot be had" in capsys.readouterr().out


def test_what_cannot_be_imported_is_an_error(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "USED", ("json",))
    tool.first_import()
    monkeypatch.setattr(tool, "USED", ("no_such_module_here",))
    with pytest.raises(tool.SetupError, match="cannot be imported"):
        tool.first_import()


def test_pins_lie_in_the_ranges_of_setup_py() -> None:
    ranges = [Requirement(text) for text in setup_keyword("install_requires")]
    for wanted in ranges:
        pins = [pin for pin in requirement_lines() if pin.name == wanted.name]
        assert pins, f"{wanted.name} is not pinned in requirements.txt"
        for pin in pins:
            (exact,) = pin.specifier
            assert exact.operator == "==" and exact.version in wanted.specifier, pin


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_python_gets_one_pin_of_each_package(python: str) -> None:
    names = [
        pin.name
        for pin in requirement_lines()
        if pin.marker is None or pin.marker.evaluate({"python_version": python})
    ]
    assert len(names) == len(set(names)) == len({pin.name for pin in requirement_lines()})


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, [], ".venv/bin/python"),
        ({"VIRTUAL_ENV": "/active"}, [], "/active/bin/python"),
        ({"CONDA_DEFAULT_ENV": "base", "CONDA_PREFIX": "/conda"}, [], ".venv/bin/python"),
        ({"CONDA_DEFAULT_ENV": "ovd", "CONDA_PREFIX": "/conda"}, [], "/conda/bin/python"),
        ({"VIRTUAL_ENV": "/active"}, [f"PYTHON={sys.executable}"], sys.executable),
    ],
)
def test_make_chooses_the_environment(
    environment: dict[str, str], arguments: list[str], expected: str
) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "setup", *arguments]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1].rstrip() == f'"{expected}" tools/setup_environment.py'


def test_looking_for_pip_leaves_setuptools_its_distutils() -> None:
    # Else whatever imports setuptools later in this process (detectron2.model_zoo) fails.
    command = "import _distutils_hack; print(_distutils_hack.DISTUTILS_FINDER.spec_for_distutils)"
    code = f"import sys; sys.path.insert(0, {str(TOOL.parent)!r})\n"
    code += f"import setup_environment; setup_environment.ensure_pip()\n{command}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "lambda" not in result.stdout and result.returncode == 0
