#!/usr/bin/env python
"""Compare a system with reference numbers of its public code: one line per tensor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from detectron2.modeling import build_model
from torch import nn

from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.golden import Comparison, GoldenFolder, Part
from ovd_d2.systems import systems

EPILOG = """example:
  python tools/check_golden.py vild ../shared/golden/vild
A part that lacks a file is skipped, and named. Exits with 1 if a difference is larger than its
tolerance, or if nothing could be compared.
"""
ROOT = Path(__file__).resolve().parent.parent


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [system.name.lower() for system in systems() if system.golden]
    parser.add_argument("system", choices=names)
    parser.add_argument("folder", type=Path, help="of the reference numbers")
    return parser.parse_args(argv)


def build(config_file: str, options: Sequence[str]) -> nn.Module:
    """A model of this repository's configs, in eval mode on the CPU."""
    cfg = load_config(str(ROOT / config_file), ["MODEL.DEVICE", "cpu", *options])
    return build_model(cfg).eval()


def report(parts: Sequence[Part], folder: GoldenFolder) -> list[Comparison]:
    """Makes and prints what can be compared, and names what cannot."""
    found = []
    for part in parts:
        if missing := part.missing(folder):
            print(f"skipped {part.name}: no {missing}")
            continue
        for one in part.comparisons(folder):
            print_line(one)
            found.append(one)
    return found


def print_line(one: Comparison) -> None:
    verdict = "ok" if one.ok else "FAIL"
    print(f"{one.file:34} {one.name:44} {one.difference:9.2e} {one.tolerance:9.2e} {verdict}")


@exit_with_message(SetupError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    system = next(one for one in systems() if one.name.lower() == args.system)
    print(f"{'file':34} {'tensor':44} {'largest':>9} {'allowed':>9}")
    found = report(import_module(system.golden).PARTS, GoldenFolder(args.folder, build))
    if not found:
        sys.exit(
            f"nothing was compared: {args.folder} lacks a file of every part of {args.system} (see "
            "above); give a folder of this system's reference numbers"
        )
    if failed := sum(not one.ok for one in found):
        sys.exit(f"{failed} comparisons failed")


if __name__ == "__main__":
    main()
