#!/usr/bin/env python
"""Find a Chromium for the tests of the web page; as root on Debian or Ubuntu, install one.

`make test` calls it; without a browser those tests are skipped. Stands alone on the standard
library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-dejavu-core")
HOW = "install one: sudo apt-get install chromium, or python -m playwright install chromium"


def chromium() -> str | None:
    """The program of the system; None where there is none (Playwright may have its own)."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def install() -> bool:
    """By the system's packages, where this user may; whether it went well."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    print("browser: installing Chromium by apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
    commands = (
        (*quiet, "update"),
        (*quiet, "install", "--yes", "--no-install-recommends", *PACKAGES),
    )
    return all(
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
        == 0
        for command in commands
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    if chromium() or install():
        return 0
    print(f"browser: found no Chromium; {HOW}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
