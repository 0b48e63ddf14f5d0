#!/usr/bin/env python
"""Compare a system with reference numbers of its public code: one line per tensor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from detectron2.modeling import build_model
from torch import nn

from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.golden import Comparison, GoldenFolder
from ovd_d2.systems import systems

EPILOG = """example:
  python tools/check_golden.py vild ../shared/golden/vild
exits with 1 if a difference is larger than its tolerance; files that are not there are left out
"""
ROOT = Path(__file__).resolve().parent.parent


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [system.name.lower() for system in systems() if system.golden]
    parser.add_argument("system", choices=names)
    parser.add_argument("folder", type=Path, help="instance.json and the files beside it")
    return parser.parse_args(argv)


def build(config_file: str, options: Sequence[str]) -> nn.Module:
    """A model of this repository's configs, in eval mode on the CPU."""
    cfg = load_config(str(ROOT / config_file), ["MODEL.DEVICE", "cpu", *options])
    return build_model(cfg).eval()


def report(found: Iterator[Comparison]) -> int:
    """Prints every comparison as it comes; how many failed."""
    failed = 0
    for one in found:
        failed += not one.ok
        verdict = "ok" if one.ok else "FAIL"
        print(f"{one.file:34} {one.name:44} {one.difference:9.2e} {one.tolerance:9.2e} {verdict}")
    return failed


@exit_with_message(SetupError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    system = next(one for one in systems() if one.name.lower() == args.system)
    comparisons = import_module(system.golden).comparisons
    print(f"{'file':34} {'tensor':44} {'largest':>9} {'allowed':>9}")
    failed = report(comparisons(GoldenFolder(args.folder, build)))
    if failed:
        sys.exit(f"{failed} comparisons failed")


if __name__ == "__main__":
    main()
