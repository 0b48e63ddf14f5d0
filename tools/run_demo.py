#!/usr/bin/env python
"""The whole way of a system on a bare machine, from the data to AP of rare categories."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import ovd_d2  # noqa: F401  (registers the data sets)
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.pictograms.demo.report import scene_for, write_report
from ovd_d2.pictograms.showcase import names_step, showcases, steps_of
from ovd_d2.pictograms.steps import VAL_SET, Run
from ovd_d2.pipeline.pipeline import Pipeline, StepFailed

EPILOG = """
examples:
  tools/run_demo.py
  tools/run_demo.py --names "red anchor, snowman"     (any words; they need no training)
Killed or run again, it goes on where it was.
"""
DEFAULT_NAMES = "anchor, umbrella, snowman"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder of results"
    )
    parser.add_argument("--system", default="vild", help="what to show (vild)")
    parser.add_argument(
        "--names", default=DEFAULT_NAMES, help="what to look for in one scene, comma-separated"
    )
    return parser.parse_args()


@exit_with_message(SetupError, StepFailed)
def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    folder = args.output.resolve()
    ((system, showcase),) = showcases([args.system]).items()
    methods, run = showcase.select(showcase.demo), Run(folder)
    seconds = Pipeline(steps_of(showcase, [run], methods), folder).run()
    outputs = {method.title: run.output(method.name) for method in methods}
    shown = folder / system.lower()
    print("\n" + write_report(shown, VAL_SET, outputs, seconds))
    scene = scene_for(args.names, VAL_SET).resolve()
    look = names_step(run, methods[0], args.names, scene, shown / "your_names")
    Pipeline([look], folder).run()
    print(f"\nreport    {shown / 'report.txt'}")
    print(f"pictures  {shown / 'pictures.png'}")
    print(f"names     {look.product}")
    print(f"this run took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
