#!/usr/bin/env python
"""Measure what the documentation claims; every table in docs/ is written by this command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    cache_kills,
    cache_page,
    dense,
    dense_teacher,
    distillation,
    examples,
    exported,
    fvit,
    glip,
    glip_parts,
    inference,
    keep_zero_shot,
    online,
    options,
    phrases,
    regions,
    speed,
    stored_types,
    sweeps,
    tables,
    web_load,
)
from benchmarks.documents import Document, make_document
from benchmarks.page import page
from tabulate import tabulate

import ovd_d2  # noqa: F401  (registers the data sets)
from ovd_d2.engine.launching import add_device_argument
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import atomic_write, atomic_write_json
from ovd_d2.pictograms.showcase import Method, Showcase, only_once, showcases, steps_of
from ovd_d2.pictograms.steps import Run
from ovd_d2.pipeline.pipeline import Pipeline, StepFailed, repository_root

EPILOG = """
example (five hours on two cores, half of them for GLIP: --systems names others; takes up what make
demo has trained, and goes on where it was):
  python tools/benchmark.py demo-table --seeds 0 1 2
all rows of the papers' tables (two hours more; takes up what demo-table has trained):
  python tools/benchmark.py paper-table --seeds 0 1 2
the embedding cache (a few minutes; trains nothing; on a GPU where there is one):
  python tools/benchmark.py cache
  python tools/benchmark.py cache --device cuda --architecture ViT-L-14
inference beside Detectron2's own (five minutes on two quiet cores; trains nothing):
  python tools/benchmark.py inference
what dense features know of regions before and after CLIPSelf, and teach ViLD (about an hour):
  python tools/benchmark.py regions --seeds 0 1 2
  python tools/benchmark.py dense-teacher --seeds 0 1 2
recall of captions' phrases by GLIP, and prompts with a colour (in GLIP's paper-table, too; ten
minutes; takes up what that has trained):
  python tools/benchmark.py phrases --seeds 0 1 2
what tuning on new names costs the old ones, and what mixed weights keep (half an hour):
  python tools/benchmark.py keep-zero-shot --seeds 0 1 2
dense features beside open_clip's own forward pass, CLIPSelf's step, F-ViT (three minutes; trains
nothing):
  python tools/benchmark.py dense
how much example images should weigh beside words (a few minutes; trains nothing):
  python tools/benchmark.py examples --training output/demo/seed0/fvit_clipself_quick
the web page under 1,000 requests, and its memory (a few minutes; trains nothing):
  python tools/benchmark.py web --model output/my_model --images datasets/pictograms_v1/val
exported detectors in onnxruntime beside PyTorch (three minutes; trains nothing):
  python tools/benchmark.py onnx
1,203 names in GLIP beside a whole pass per 40 names, and its parts (six minutes; trains nothing):
  python tools/benchmark.py glip
"""
# The methods of a system in each table.
TABLES: dict[str, Callable[[Showcase], list[Method]]] = {
    "demo-table": lambda showcase: showcase.select(showcase.demo_table),
    "paper-table": lambda showcase: list(showcase.methods),
}
# What the models of a system's paper table show beside AP: another benchmark, measured with it.
BESIDE_AP = {"GLIP": "phrases"}
FILES = {
    "demo-table": "pictograms_demo.json",
    "paper-table": "pictograms_paper.json",
    "sweeps": "pictograms_sweeps.json",
    "stored-types": "pictograms_stored_types.json",
    "speed": "pictograms_speed.json",
    "phrases": "pictograms_phrases.json",
}

CLIPSELF_INTRODUCTION = """# CLIPSelf on Pictograms

Pictograms are drawn glyphs: the numbers say whether the method works, not how well it does on
photographs. The CLIP is Pictogram-ViT, which learnt from crops of single glyphs and has seen no
scene; CLIPSelf shows it scenes of 160 pixels, without any label. F-ViT on it stands in the table of
all detectors: [results.md](results.md).
"""
CLIPSELF_SECTIONS: dict[str, Callable[[Document], str]] = {
    "clipself_regions": regions.section,
    "clipself_teacher": dense_teacher.section,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, what in (
        ("demo-table", "AP of the demo's methods on Pictograms, every system"),
        ("paper-table", "AP of every row of the papers' main tables on Pictograms"),
        ("sweeps", "how AP moves with one setting at a time: plots"),
        ("stored-types", "AP from a float16 and from an int8 cache"),
        ("dense-teacher", "ViLD-ensemble from crops and from dense maps of one ViT"),
        ("regions", "regions and pixels by dense features, before and after CLIPSelf"),
        ("phrases", "GLIP's recall of phrases of captions, and attribute prompts"),
        ("keep-zero-shot", "new and old names after a tuning, plain and with mixed weights"),
        ("speed", "ratios of times beside the ratios of operations"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument(
            "--seeds", type=int, nargs="+", default=[0] if name == "speed" else [0, 1, 2]
        )
        command.add_argument(
            "--output",
            type=Path,
            default=Path("output/demo"),
            help="trained models; those of make demo",
        )
        if name in TABLES:
            command.add_argument(
                "--systems", nargs="+", default=[], help="names, e.g. vild (default: all)"
            )
        if name == "regions":
            names = [one.name for one in regions.STUDENTS]
            command.add_argument(
                "--students",
                nargs="+",
                choices=names,
                default=names,
                help="measure these anew; the others keep their rows (default: all)",
            )
        if name == "speed":
            command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
        command.add_argument(
            "--docs", type=Path, default=repository_root() / "docs", help="written to"
        )
    add_cache_command(commands)
    add_inference_command(commands)
    add_onnx_command(commands)
    add_dense_command(commands)
    add_glip_command(commands)
    add_examples_command(commands)
    add_web_command(commands)
    return parser.parse_args()


def add_cache_command(commands: Any) -> None:
    command = commands.add_parser(
        "cache", help="building, reading and training from the embedding cache"
    )
    add_device_argument(command)
    command.add_argument(
        "--architecture", help="measure building with this teacher alone, random weights"
    )
    command.add_argument(
        "--kills",
        type=int,
        default=cache_kills.KILLS,
        help="builds killed at random moments and run again (default: %(default)s)",
    )
    command.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")


def add_inference_command(commands: Any) -> None:
    command = commands.add_parser(
        "inference",
        help="whole images, masks, many names, memory: beside Detectron2's own, on the CPU",
        epilog="example:\n  python tools/benchmark.py inference --docs output/docs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")


def add_onnx_command(commands: Any) -> None:
    command = commands.add_parser(
        "onnx", help="exported detectors in onnxruntime over PyTorch, stage by stage, on the CPU"
    )
    command.add_argument(
        "--networks",
        nargs="+",
        choices=exported.CASES,
        default=list(exported.CASES),
        metavar="NAME",
        help=f"of {', '.join(exported.CASES)} (default: all)",
    )
    command.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")


def add_dense_command(commands: Any) -> None:
    command = commands.add_parser(
        "dense", help="dense features of CLIP's ViTs, steps of CLIPSelf, parts of F-ViT, on the CPU"
    )
    command.add_argument("--compiled", action="store_true", help="also through torch.compile")
    command.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")


def add_glip_command(commands: Any) -> None:
    command = commands.add_parser(
        "glip", help="many names in GLIP and what its parts cost, on the CPU"
    )
    command.add_argument(
        "--tokenizer",
        default="bert-base-uncased",
        help="BERT's vocab.txt, its folder, or a name of the hub (default: %(default)s)",
    )
    command.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")


def add_examples_command(commands: Any) -> None:
    command = commands.add_parser(
        "examples", help="AP of novel names by the weight of their example images"
    )
    command.add_argument(
        "--training", required=True, type=Path, help="OUTPUT_DIR of a detector with a teacher"
    )
    command.add_argument("--docs", type=Path, default=repository_root() / "docs", help="written to")


def add_web_command(commands: Any) -> None:
    command = commands.add_parser("web", help="memory of the web page under many requests")
    command.add_argument("--model", required=True, help="as of tools/web_demo.py")
    command.add_argument("--images", required=True, type=Path, help="folder of images to upload")
    command.add_argument("--requests", type=int, default=1000)
    command.add_argument("--port", type=int, default=7899, help="(default: %(default)s)")


def measure_table(args: argparse.Namespace) -> None:
    """Trains and evaluates what is missing, then writes the JSON and the page."""
    folder = args.output.resolve()
    runs = [Run(folder, seed) for seed in args.seeds]
    chosen = {
        name: one for name, one in showcases(args.systems).items() if TABLES[args.benchmark](one)
    }
    steps = [
        step for one in chosen.values() for step in steps_of(one, runs, TABLES[args.benchmark](one))
    ]
    Pipeline(only_once(steps), folder).run()
    documents = {
        name: make_document(
            seeds_command(args) + f" --systems {name}",
            tables.collect_rows(folder, args.seeds, TABLES[args.benchmark](one)),
        )
        for name, one in chosen.items()
    }
    write_tables(args, documents)
    rows = tables.rows_of(documents)
    print(tables.table_of(rows) + "\n")
    if args.benchmark == "paper-table":
        print(tables.orderings_table(rows, tables.orderings_about(rows)))
        for benchmark in (BESIDE_AP[name] for name in chosen if name in BESIDE_AP):
            MEASURE[benchmark](argparse.Namespace(**{**vars(args), "benchmark": benchmark}))
    else:
        for expected in tables.expectations_about(rows).values():
            print(tables.expectations_table(rows, expected))


def measure_sweeps(args: argparse.Namespace) -> None:
    """Trains and evaluates what is missing, then writes the JSON, the plots and the page."""
    folder = args.output.resolve()
    Pipeline(sweeps.sweep_steps(folder, args.seeds), folder).run()
    rows = sweeps.collect_points(folder, args.seeds)
    sweeps.plot(rows, args.docs / "sweeps.png")
    write_document(args, rows)
    print(tabulate(rows, headers="keys"))
    print(args.docs / "sweeps.png")


def measure_stored_types(args: argparse.Namespace) -> None:
    """Builds and trains what is missing, then writes the JSON and the page."""
    folder = args.output.resolve()
    Pipeline(stored_types.stored_type_steps(folder, args.seeds), folder).run()
    rows = stored_types.collect_rows(folder, args.seeds)
    write_document(args, rows)
    print(stored_types.table_of(rows))


def measure_regions(args: argparse.Namespace) -> None:
    """Trains and evaluates what is missing, then writes the JSON, the plot and its page."""
    folder = args.output.resolve()
    students = regions.named(args.students)
    Pipeline(regions.steps(folder, args.seeds, students), folder).run()
    measured = regions.collect_rows(folder, args.seeds, students)
    file = args.docs / "results" / "clipself_regions.json"
    before = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = regions.joined(measured, before)
    regions.plot(rows, args.docs / "clipself_regions.png")
    write_clipself_page(args.docs, "clipself_regions", make_document(seeds_command(args), rows))
    print(regions.table_of(rows))


def measure_phrases(args: argparse.Namespace) -> None:
    """Trains what is missing, measures, then writes the JSON and the page."""
    folder = args.output.resolve()
    runs = [Run(folder, seed) for seed in args.seeds]
    Pipeline(steps_of(phrases.SHOWCASE, runs, phrases.METHODS), folder).run()
    rows = [phrases.measure(run, method) for method in phrases.METHODS for run in runs]
    write_document(args, rows)
    print(phrases.table_of(rows))


def measure_dense_teacher(args: argparse.Namespace) -> None:
    """Builds and trains what is missing, then writes the JSON and the page."""
    folder = args.output.resolve()
    seconds = Pipeline(dense_teacher.steps(folder, args.seeds), folder).run()
    rows = dense_teacher.collect_rows(folder, args.seeds, seconds)
    write_clipself_page(args.docs, "clipself_teacher", make_document(seeds_command(args), rows))
    print(dense_teacher.table_of(rows))


def measure_keep_zero_shot(args: argparse.Namespace) -> None:
    """Trains and evaluates what is missing, then writes the JSON and its page."""
    folder = args.output.resolve()
    Pipeline(keep_zero_shot.steps(folder, args.seeds), folder).run()
    rows = keep_zero_shot.collect_rows(folder, args.seeds)
    document = make_document(seeds_command(args), rows)
    atomic_write_json(args.docs / "results" / "keep_zero_shot.json", document)
    with atomic_write(args.docs / "results-keep-zero-shot.md") as temporary:
        temporary.write_text(keep_zero_shot.page(document))
    print(keep_zero_shot.page(document))


def write_clipself_page(docs: Path, name: str, document: Document) -> None:
    """The JSON of one section, and docs/results-clipself.md from those that there are."""
    atomic_write_json(docs / "results" / f"{name}.json", document)
    parts = [CLIPSELF_INTRODUCTION]
    for one, section in CLIPSELF_SECTIONS.items():
        file = docs / "results" / f"{one}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text())))
    with atomic_write(docs / "results-clipself.md") as temporary:
        temporary.write_text("\n".join(parts))


def measure_speed(args: argparse.Namespace) -> None:
    """Trains what is missing, then measures and writes the JSON and the page."""
    folder = args.output.resolve()
    Pipeline(speed.steps(Run(folder, args.seeds[0])), folder).run()
    rows = speed.measure(folder, args.seeds[0], args.device)
    rows += options.measure(folder, args.seeds[0], args.device)
    if args.device == "cpu":
        rows.append(online.pictograms_online_cost(Run(folder, args.seeds[0])).row())
    write_document(args, rows)
    print(speed.table_of(rows))


def measure_cache(args: argparse.Namespace) -> None:
    """Measures everything about the cache in one run; writes the JSON and its page."""
    rows = cache_page.measure(args.device, args.architecture, args.kills)
    command = f"python tools/benchmark.py cache --device {args.device}"
    if args.architecture is not None:
        command += f" --architecture {args.architecture}"
    if args.kills != cache_kills.KILLS:
        command += f" --kills {args.kills}"
    document = make_document(command, rows)
    atomic_write_json(args.docs / "results" / "cache.json", document)
    with atomic_write(args.docs / "results-cache.md") as temporary:
        temporary.write_text(cache_page.page(document))
    print(cache_page.table_of(rows))


def measure_inference(args: argparse.Namespace) -> None:
    """Measures, then writes the JSON and its page."""
    document = make_document("python tools/benchmark.py inference", inference.measure())
    atomic_write_json(args.docs / "results" / "inference.json", document)
    with atomic_write(args.docs / "results-inference.md") as temporary:
        temporary.write_text(inference.page(document))
    print("\n\n".join(inference.tables_of(document["rows"]).values()))


def measure_onnx(args: argparse.Namespace) -> None:
    """Measures, then writes the JSON and its page."""
    command = "python tools/benchmark.py onnx"
    if args.networks != list(exported.CASES):
        command += f" --networks {' '.join(args.networks)}"
    cases = [exported.CASES[name] for name in args.networks]
    document = make_document(command, exported.measure(cases))
    atomic_write_json(args.docs / "results" / "onnx.json", document)
    with atomic_write(args.docs / "results-onnx.md") as temporary:
        temporary.write_text(exported.page(document))
    print(exported.table_of(document["rows"]))


def measure_dense(args: argparse.Namespace) -> None:
    """Measures, then writes the JSON and its page."""
    command = "python tools/benchmark.py dense" + " --compiled" * args.compiled
    rows = dense.measure(compiled=args.compiled) + distillation.measure() + fvit.measure()
    document = make_document(command, rows)
    atomic_write_json(args.docs / "results" / "dense.json", document)
    with atomic_write(args.docs / "results-dense.md") as temporary:
        temporary.write_text(dense.page(document))
    print(dense.page(document))


def measure_glip(args: argparse.Namespace) -> None:
    """Measures, then writes the JSON and its page."""
    forties, packed = glip.questions(args.tokenizer)
    rows = glip.measure(forties, packed) + glip_parts.measure(forties[0])
    document = make_document("python tools/benchmark.py glip", rows)
    atomic_write_json(args.docs / "results" / "glip.json", document)
    text = f"{glip.page(document)}\n{glip_parts.section(rows)}"
    with atomic_write(args.docs / "results-glip.md") as temporary:
        temporary.write_text(text)
    print(text)


def measure_examples(args: argparse.Namespace) -> None:
    """Measures, then writes the JSON and its page."""
    command = f"python tools/benchmark.py examples --training {args.training}"
    document = make_document(command, examples.measure(args.training))
    atomic_write_json(args.docs / "results" / "examples.json", document)
    with atomic_write(args.docs / "results-examples.md") as temporary:
        temporary.write_text(examples.page(document))
    print(examples.table_of(document["rows"]))


def measure_web(args: argparse.Namespace) -> None:
    """Prints how much memory the server takes, every tenth of the requests."""
    images = sorted(one for one in args.images.iterdir() if one.suffix in (".png", ".jpg"))[:20]
    if not images:
        raise SetupError([f"--images {args.images}: no .png or .jpg in it"])
    with web_load.server(args.model, ["--port", str(args.port)]) as (address, process):
        for row in web_load.measure(address, process, images, args.requests):
            print("{requests} requests: {MiB} MiB, {seconds} s".format(**row), flush=True)


def seeds_command(args: argparse.Namespace) -> str:
    """What was called, without what a benchmark adds to it."""
    command = f"python tools/benchmark.py {args.benchmark} --seeds {' '.join(map(str, args.seeds))}"
    students = getattr(args, "students", [])
    if len(students) in (0, len(regions.STUDENTS)):
        return command
    return f"{command} --students {' '.join(students)}"


def write_tables(args: argparse.Namespace, documents: tables.Documents) -> None:
    """The JSON of a table, in which systems that were not measured keep theirs; the page anew."""
    file = args.docs / "results" / FILES[args.benchmark]
    before = json.loads(file.read_text()) if file.exists() else {}
    atomic_write_json(file, {**before, **documents})
    write_page(args.docs)


def write_document(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The JSON of a benchmark, and the page anew."""
    command = seeds_command(args)
    if getattr(args, "device", "cpu") != "cpu":
        command += f" --device {args.device}"
    document = make_document(command, rows)
    atomic_write_json(args.docs / "results" / FILES[args.benchmark], document)
    write_page(args.docs)


def write_page(docs: Path) -> None:
    """docs/results.md from the JSON files that there are."""
    files = [docs / "results" / name for name in FILES.values()]
    documents = [json.loads(file.read_text()) if file.exists() else None for file in files]
    with atomic_write(docs / "results.md") as temporary:
        temporary.write_text(page(*documents))


MEASURE = {
    "demo-table": measure_table,
    "paper-table": measure_table,
    "sweeps": measure_sweeps,
    "stored-types": measure_stored_types,
    "dense-teacher": measure_dense_teacher,
    "regions": measure_regions,
    "phrases": measure_phrases,
    "keep-zero-shot": measure_keep_zero_shot,
    "speed": measure_speed,
    "cache": measure_cache,
    "inference": measure_inference,
    "onnx": measure_onnx,
    "dense": measure_dense,
    "glip": measure_glip,
    "examples": measure_examples,
    "web": measure_web,
}

if __name__ == "__main__":
    with exit_with_message(SetupError, StepFailed):
        arguments = parse_args()
        MEASURE[arguments.benchmark](arguments)
