#!/usr/bin/env python
"""Measure what the documentation claims; every table in docs/ is written by this command."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

import ovd_d2  # noqa: F401  (registers the data sets)
from ovd_d2.demo import benchmark
from ovd_d2.demo.pictograms import benchmark_steps
from ovd_d2.demo.steps import Pipeline, StepFailed, repository_root
from ovd_d2.files import atomic_write, atomic_write_json

EPILOG = """
example (about an hour on two cores; takes up what make demo has trained, and goes on where it was):
  python tools/benchmark.py demo-table --seeds 0 1 2
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True)
    table = commands.add_parser("demo-table", help="AP of the demo's methods on Pictograms")
    table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    table.add_argument(
        "--output",
        type=Path,
        default=Path("output/demo"),
        help="trained models; those of make demo",
    )
    table.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")
    return parser.parse_args()


def demo_table(args: argparse.Namespace) -> None:
    folder = args.output.resolve()
    Pipeline(benchmark_steps(folder, args.seeds), folder).run()
    seeds = " ".join(map(str, args.seeds))
    rows = benchmark.collect_rows(folder, args.seeds)
    document = {
        "command": f"python tools/benchmark.py demo-table --seeds {seeds}",
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    atomic_write_json(args.docs / "results" / "pictograms_demo.json", document)
    with atomic_write(args.docs / "results.md") as temporary:
        temporary.write_text(benchmark.page(document))
    print(benchmark.table_of(rows))
    print()
    print(benchmark.expectations_table(rows))


if __name__ == "__main__":
    try:
        demo_table(parse_args())
    except StepFailed as error:
        sys.exit(str(error))
