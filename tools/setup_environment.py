"""Install everything ovd_d2 needs into the environment of the Python that runs this file.

Pinned requirements, OpenCV (kept if some build of it is there), lvis, detectron2, then ovd_d2
in editable mode. What was done is stamped into the environment, so that a second call with
the same requirements ends at once. `make setup` calls it; `make test-lowest` calls it with
--lowest, for the lower bounds of setup.py instead of the pins.

uv installs, at the version that requirements.txt pins: it downloads in parallel, and a second
environment shares the files of the first through its cache. Where uv cannot be had, or fails
(it does not read pip's settings, a mirror for example), pip does the same, and it is said.

Stands alone on the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements.txt"
INSTALLER = ROOT / "tools" / "install_detectron2.py"
# A change of any of these makes the environment out of date.
RANGES = ROOT / "setup.py"
INPUTS = (REQUIREMENTS, RANGES, INSTALLER, Path(__file__).resolve())
STAMP = Path(sys.prefix) / ".ovd_d2-setup.json"
MODULES = ("torch", "torchvision", "cv2", "lvis", "open_clip", "detectron2", "ovd_d2", "pytest")
OLDEST, NEWEST = (3, 10), (3, 12)
# Released as source alone, and pure Python; whatever else a lower bound names must have a wheel.
SOURCE_ONLY = ("fvcore", "antlr4-python3-runtime")
# Imported once at the end: it shows that they work, and leaves them compiled.
USED = (*MODULES, "detectron2.model_zoo", "ovd_d2.engine.run", "hypothesis", "scipy.stats", "xdist")

PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check")
# The certificates that pip takes, too: a proxy's may be the system's alone.
UV = (sys.executable, "-m", "uv", "pip", "install", "--system-certs", "--python", sys.executable)

EPILOG = """example:
  .venv/bin/python tools/setup_environment.py
  .venv-lowest/bin/python tools/setup_environment.py --lowest
"""


class SetupError(Exception):
    """A step failed; the message says which and what to do."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="check every step again")
    parser.add_argument(
        "--lowest", action="store_true", help="install the lowest versions that setup.py allows"
    )
    args = parser.parse_args(argv)
    try:
        check_python(sys.version_info[:2])
        if args.force or not up_to_date(args.lowest):
            set_up(args.lowest)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_python(version: tuple[int, int]) -> None:
    """Raise SetupError unless this Python is one that the pins serve."""
    if not OLDEST <= version <= NEWEST:
        raise SetupError(
            f"Python {version[0]}.{version[1]} ({sys.executable}) is not supported: ovd_d2 needs "
            "3.10 to 3.12. Name another one: make PYTHON=/path/to/python3.11 ..."
        )


def up_to_date(lowest: bool = False) -> bool:
    """Whether the stamp fits today's inputs and the main modules can still be found."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp == stamp_content(lowest)) and all(map(importlib.util.find_spec, MODULES))


def stamp_content(lowest: bool = False) -> dict[str, str]:
    """What the environment was set up from: inputs, interpreter, checkout."""
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in INPUTS)).hexdigest()
    versions = "lowest" if lowest else "pinned"
    where = {"python": sys.version, "prefix": sys.prefix, "checkout": str(ROOT)}
    return {"inputs": digest, "versions": versions, **where}


def set_up(lowest: bool = False) -> None:
    """Run every step; each is quick where its work is already done."""
    start = time.monotonic()
    pins = parse_requirements(REQUIREMENTS.read_text(encoding="utf-8"))
    options: list[str] = []
    if lowest:
        pins |= lowest_pins(RANGES.read_text(encoding="utf-8"))
        options = ["--only-binary", ":all:"]
        options += [option for name in SOURCE_ONLY for option in ("--no-binary", name)]
    ensure_pip()
    ensure_uv()
    title = "requirements (a minute or some the first time; 5 GB on disk)"
    step(title, *options, *plain_pins(pins))
    if not has_opencv():
        step("opencv", pins["opencv-python-headless"])
    # Its requirements name opencv-python, which would be written over the headless build.
    step("lvis", "--no-deps", pins["lvis"])
    install_detectron2()
    step("ovd_d2", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    first_import()
    write_stamp(lowest)
    print(f"set-up: done in {time.monotonic() - start:.0f} s, in {sys.prefix}", flush=True)


def parse_requirements(text: str) -> dict[str, str]:
    """Requirement lines by the name of the package; those of one name are joined by a newline."""
    pins: dict[str, str] = {}
    for line in text.splitlines():
        requirement = line.split("#")[0].strip()
        if requirement:
            name = re.split(r"[=<>!~;\[ ]", requirement)[0].lower()
            pins[name] = "\n".join(filter(None, (pins.get(name), requirement)))
    return pins


def lowest_pins(setup_py: str) -> dict[str, str]:
    """The lower bound of every range in setup.py, as a pin by the name of the package.

    Raises:
        SetupError: a requirement of the package itself has no lower bound.
    """
    keywords = {
        node.arg: node.value
        for node in ast.walk(ast.parse(setup_py))
        if isinstance(node, ast.keyword)
    }
    required = ast.literal_eval(keywords["install_requires"])
    extras = ast.literal_eval(keywords["extras_require"])
    pins = {}
    for requirement in [*required, *(one for extra in extras.values() for one in extra)]:
        bound = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([^,;]+).*", requirement)
        if bound:
            pins[bound[1].lower()] = f"{bound[1]}=={bound[2]}"
        elif requirement in required:
            raise SetupError(f"setup.py: '{requirement}' has no lower bound (name>=version)")
    return pins


def plain_pins(pins: dict[str, str]) -> list[str]:
    """The requirements that need no special treatment, one a list entry."""
    special = ("opencv-python-headless", "lvis", "uv")
    return [line for name in pins if name not in special for line in pins[name].splitlines()]


def has_opencv() -> bool:
    """Whether some build of OpenCV is there and works without a display."""
    command = [sys.executable, "-c", "import cv2"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def ensure_pip() -> None:
    """Bring pip into an environment that lacks it, as one does whose creation was cut short."""
    if installed_version("pip") is not None:
        return
    if subprocess.run([sys.executable, "-m", "ensurepip"], check=False).returncode != 0:
        raise SetupError(
            f"{sys.executable} has no pip and cannot make it. On Debian or Ubuntu: install "
            "python3-venv, remove the folder .venv and run this again"
        )


def ensure_uv() -> None:
    """Bring the pinned uv into the environment; where it cannot be had, say so."""
    if has_uv():
        return
    pin = pinned_uv()
    if subprocess.run([*PIP, "--quiet", pin], check=False).returncode != 0:
        print(f"set-up: {pin} cannot be had (above); pip installs, which takes longer", flush=True)


def has_uv() -> bool:
    """Whether the pinned uv is in this environment."""
    return f"uv=={installed_version('uv')}" == pinned_uv()


def installed_version(name: str) -> str | None:
    """Of a package here. (Looking for the module pip makes setuptools give up its distutils.)"""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned_uv() -> str:
    return parse_requirements(REQUIREMENTS.read_text(encoding="utf-8"))["uv"]


def step(title: str, *arguments: str) -> None:
    """Install by uv, or by pip where uv is not there or fails; SetupError if pip fails, too."""
    print(f"set-up: {title}", flush=True)
    # Progress bars are for people.
    options = arguments if sys.stdout.isatty() else ("--quiet", *arguments)
    if has_uv():
        if subprocess.run([*UV, *options], check=False).returncode == 0:
            return
        print(f"set-up: uv failed (above); pip installs {title}, which takes longer", flush=True)
    if subprocess.run([*PIP, *options], check=False).returncode != 0:
        raise SetupError(
            f"{title}: pip failed (above). Check the network and the free disk space (6 GB), "
            "then run the same command again: finished steps are not repeated"
        )


def first_import() -> None:
    """Import what is used, in a fresh interpreter that leaves it compiled (uv compiles nothing)."""
    print("set-up: first import", flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-W", "ignore", "-c", f"import {', '.join(USED)}"]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        raise SetupError(
            "what was installed cannot be imported (above). Check every step: make setup FORCE=1"
        )


def install_detectron2() -> None:
    """Hand over to the installer of detectron2, which prints its own errors."""
    print("set-up: detectron2", flush=True)
    if subprocess.run([sys.executable, str(INSTALLER)], check=False).returncode != 0:
        raise SetupError(f"detectron2: {INSTALLER.name} failed (above)")


def write_stamp(lowest: bool = False) -> None:
    """Leave the stamp; without the right to write there, the next call checks again."""
    temporary = STAMP.with_name(f"{STAMP.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(stamp_content(lowest), indent=2) + "\n", encoding="utf-8")
        temporary.replace(STAMP)
    except OSError as error:
        print(f"set-up: no stamp written, every call will check all steps ({error})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
