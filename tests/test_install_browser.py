"""Which browser the tests of the web page get; nothing is installed here."""

from __future__ import annotations

import subprocess
from typing import Any

import install_browser
import pytest


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with some programs; commands are recorded, and fail where told to."""
    told: dict[str, Any] = {"programs": set(), "user": 0, "status": 0, "commands": []}

    def run(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        told["commands"].append(command)
        return subprocess.CompletedProcess(command, told["status"])

    def which(name: str) -> str | None:
        return f"/usr/bin/{name}" if name in told["programs"] else None

    monkeypatch.setattr("sys.argv", ["install_browser.py"])
    monkeypatch.setattr(install_browser.shutil, "which", which)
    monkeypatch.setattr(install_browser.os, "geteuid", lambda: told["user"])
    monkeypatch.setattr(install_browser.subprocess, "run", run)
    return told


def test_a_browser_that_is_there_is_taken(machine: dict[str, Any]) -> None:
    machine["programs"] = {"google-chrome", "apt-get"}
    assert install_browser.main() == 0 and machine["commands"] == []
    assert install_browser.chromium() == "/usr/bin/google-chrome"


def test_root_installs_one(machine: dict[str, Any]) -> None:
    machine["programs"] = {"apt-get"}
    assert install_browser.main() == 0
    update, install = machine["commands"]
    assert update[-1] == "update" and set(install_browser.PACKAGES) <= set(install)


@pytest.mark.parametrize(
    "change", [{"user": 1000}, {"programs": set()}, {"status": 100}], ids=["user", "no apt", "net"]
)
def test_without_one_it_says_how(
    machine: dict[str, Any], change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    machine["programs"] = {"apt-get"}
    machine.update(change)
    assert install_browser.main() == 1
    assert "browser: found no Chromium; install one: sudo apt-get" in capsys.readouterr().err
    assert len(machine["commands"]) == ("status" in change)
