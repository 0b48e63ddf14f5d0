"""A project is importable as ovd_d2.projects.NAME, however this package is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPET = "import ovd_d2.projects.toy as toy; assert toy.ANSWER == 42; print(toy.__file__)"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is installed, with a project more."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "ovd_d2", folder / "ovd_d2", ignore=ignored)
    package = folder / "projects" / "Toy" / "toy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from ovd_d2.projects.toy.inner import ANSWER\n")
    (package / "inner.py").write_text("ANSWER = 42\n")
    return folder


def run(*command, path, cwd):
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def pip(*arguments, cwd):
    # else pip takes away the package that the tests run from
    quiet = (
        "--ignore-installed",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--disable-pip-version-check",
    )
    run("-m", "pip", *arguments, *quiet, path="", cwd=cwd)


def test_from_a_checkout(checkout, tmp_path):
    found = run("-c", SNIPPET, path=checkout, cwd=tmp_path)
    assert Path(found) == checkout / "projects/Toy/toy/__init__.py"


def test_from_an_editable_install(checkout, tmp_path):
    pip("install", "--prefix", tmp_path / "env", "-e", checkout, cwd=tmp_path)
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")})
    # without what else this environment has installed as editable: this package itself
    libraries = f"sys.path.append({sysconfig.get_path('purelib')!r})"
    code = f"import site, sys; site.addsitedir({site!r}); {libraries}; {SNIPPET}"
    found = run("-S", "-c", code, path="", cwd=tmp_path)
    assert Path(found) == checkout / "projects/Toy/toy/__init__.py"


def test_from_a_wheel(checkout, tmp_path):
    pip("install", "--target", tmp_path / "site", checkout, cwd=tmp_path)
    found = run("-c", SNIPPET, path=tmp_path / "site", cwd=tmp_path)
    assert Path(found) == tmp_path / "site/ovd_d2/projects/toy/__init__.py"
