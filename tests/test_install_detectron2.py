from __future__ import annotations

import base64
import email
import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "install_detectron2.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool() -> ModuleType:
    """A fresh module per test, so that what a test replaces does not outlive it."""
    return load_tool()


DONOR_FILES = {
    "LabGym/__init__.py": "raise RuntimeError('not part of detectron2')\n",
    "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
    "LabGym/detectron2/where.py": (
        "import LabGym.detectron2.config as config\n"
        "from LabGym.detectron2 import __version__\n"
        'LOGGER = "LabGym.detectron2.where"\n'
    ),
    "LabGym/detectron2/config/__init__.py": "VALUE = 7\n",
    "LabGym/detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "LabGym/detectron2/_C.so": "binary",
    "LabGym/detectron2/weights.pkl": "binary",
}


def write_donor(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def donor(tmp_path: Path) -> Path:
    return write_donor(tmp_path / "labgym.whl", DONOR_FILES)


@pytest.fixture
def wheel(tool: ModuleType, donor: Path, tmp_path: Path) -> Path:
    return Path(tool.build_wheel(donor, tmp_path, "the licence"))


def test_wheel_holds_python_and_yaml_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        code = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(code) == [
        "detectron2/__init__.py",
        "detectron2/config/__init__.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/where.py",
    ]


def test_record_lists_every_file_with_its_hash(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        record_name = next(name for name in archive.namelist() if name.endswith("/RECORD"))
        rows = [row.split(",") for row in archive.read(record_name).decode().splitlines()]
        assert sorted(name for name, _, _ in rows) == sorted(archive.namelist())
        for name, digest, size in rows:
            if name == record_name:
                assert (digest, size) == ("", "")
                continue
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert (digest, size) == (f"sha256={expected.decode()}", str(len(content)))


def test_metadata_licence_and_provenance(tool: ModuleType, wheel: Path, donor: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{tool.DIST_INFO}/METADATA"))
        assert archive.read(f"{tool.DIST_INFO}/licenses/LICENSE") == b"the licence"
        provenance = archive.read(f"{tool.DIST_INFO}/PROVENANCE.txt").decode()
    assert metadata["Name"] == "detectron2"
    assert metadata["Version"] == "0.6+labgym3.1.2"
    requirements = metadata.get_all("Requires-Dist")
    assert requirements is not None and "iopath<0.1.10,>=0.1.7" in requirements
    assert "setuptools<82" in requirements
    assert hashlib.sha256(donor.read_bytes()).hexdigest() in provenance
    assert "Apache License 2.0" in provenance


def test_building_twice_gives_equal_bytes(tool: ModuleType, donor: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = (tool.build_wheel(donor, folder, "x").read_bytes() for folder in folders)
    assert first == second


def test_pip_installs_the_wheel_and_it_imports(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    code = (
        "import detectron2.where as where\n"
        "from importlib.metadata import version\n"
        "print(where.config.VALUE, where.LOGGER, where.__version__, version('detectron2'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(target)},
    )
    assert result.stdout.split() == ["7", "detectron2.where", "0.6", "0.6+labgym3.1.2"]


def test_donor_without_detectron2_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    empty = write_donor(tmp_path / "empty.whl", {"LabGym/__init__.py": ""})
    with pytest.raises(tool.InstallError, match=r"empty\.whl has no LabGym/detectron2/__init__"):
        tool.build_wheel(empty, tmp_path, "x")


def test_prefix_that_is_left_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    files = {**DONOR_FILES, "LabGym/detectron2/odd.py": "from LabGym import detectron2\n"}
    odd = write_donor(tmp_path / "odd.whl", files)
    with pytest.raises(tool.InstallError, match=r"left in detectron2/odd\.py"):
        tool.build_wheel(odd, tmp_path, "x")


def test_wheel_of_other_content_is_refused(tool: ModuleType, donor: Path) -> None:
    tool.check_sha256(donor, hashlib.sha256(donor.read_bytes()).hexdigest())
    with pytest.raises(tool.InstallError, match=f"expected {tool.DONOR_SHA256}"):
        tool.check_sha256(donor, tool.DONOR_SHA256)


def test_importable_detectron2_is_kept(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "importable", lambda: (True, "0.6 /somewhere"))
    monkeypatch.setattr(tool, "install_from_github", lambda: pytest.fail("must not build"))
    assert tool.install() == "already installed, kept (0.6 /somewhere)"


def test_wheel_follows_when_github_fails(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "importable", lambda: (False, "No module named 'detectron2'"))
    monkeypatch.setattr(tool, "github_problem", lambda: "no answer")
    monkeypatch.setattr(tool, "install_from_donor", lambda: "repacked")
    assert tool.install() == "repacked"
    assert "github: no answer" in capsys.readouterr().out


def test_all_reasons_are_told_when_nothing_works(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_index(folder: Path) -> Path:
        raise tool.InstallError("wheel: pip could not download")

    monkeypatch.setattr(tool, "check_torch", lambda: None)
    monkeypatch.setattr(tool, "importable", lambda: (False, "missing"))
    monkeypatch.setattr(tool, "github_problem", lambda: "no answer")
    monkeypatch.setattr(tool, "download_donor", no_index)
    assert tool.main([]) == 1
    error = capsys.readouterr().err
    assert "github: no answer" in error and "wheel: pip could not download" in error


def test_install_that_does_not_import_is_removed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tool, "importable", lambda: (False, "undefined symbol"))
    monkeypatch.setattr(tool.subprocess, "run", lambda command, **_: commands.append(command))
    with pytest.raises(tool.InstallError, match="does not import and was removed: undefined"):
        tool.usable_or_uninstall("built")
    assert commands[0][2:4] == ["pip", "uninstall"]


def test_github_probe_without_git(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda _: None)
    assert tool.github_problem() == "git is not installed"


def test_github_probe_gives_up_after_its_time(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(tool, "PROBE_SECONDS", 0.2)
    assert "did not answer in 0.2 s" in tool.github_problem()


def test_missing_torch_is_explained(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ModuleNotFoundError: No module named 'torch'")
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(tool.InstallError, match=r"No module named 'torch'.*requirements\.txt"):
        tool.check_torch()


def test_help_has_an_example() -> None:
    result = subprocess.run(
        [sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True
    )
    assert "python tools/install_detectron2.py --verify" in result.stdout
