"""ViLD-ensemble on Pictograms from crops and from dense maps of one ViT, refined or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.documents import Document, origin
from benchmarks.tables import spread
from ovd_d2.analysis.cache_comparison import ALL, compare_caches
from ovd_d2.cache import EmbeddingCache
from ovd_d2.pictograms.demo.report import read_results
from ovd_d2.pictograms.showcase import only_once
from ovd_d2.pictograms.steps import (
    TRAIN_SET,
    Run,
    clip_options,
)
from ovd_d2.pictograms.teacher import SHIPPED_TAG, VIT_ARCHITECTURE
from ovd_d2.pipeline.step import Step
from ovd_d2.projects.clipself.showcase import PROPOSALS, distillation_step, refined
from ovd_d2.vild.showcase import SHOWCASE, START, cache_step, proposal_steps
from ovd_d2.vocabulary import Vocabulary

METHOD = replace(  # its caches are others than the demo's
    SHOWCASE.method("vild_ensemble"), needs=lambda run: (run.step(START),)
)
METRICS = {  # column: task and metric
    "box AP50_base": ("bbox", "AP50_base"),
    "box AP50_novel": ("bbox", "AP50_novel"),
    "mask APr": ("segm", "APr"),
}
DENSE = ("--teacher", "dense", "--dense-size", "160", "--dense-square")

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where the embeddings of proposals come from.

    Attributes:
        name: of folders.
        title: of the row.
        refined: the ViT is that of the run's self-distillation.
        options: of `tools/cache.py build`.
    """

    name: str
    title: str
    refined: bool = False
    options: tuple[str, ...] = ()

    @property
    def cache(self) -> str:
        return f"cache_vit_{self.name}"

    @property
    def method(self) -> str:
        return f"{METHOD.name}_vit_{self.name}"


CROPS = Source("crops", "crops, 1x and 1.5x")
SOURCES = (
    CROPS,
    Source("dense", "dense map, the CLIP as it is", options=DENSE),
    Source("dense_refined", "dense map, CLIPSelf", refined=True, options=DENSE),
)


def steps(folder: Path, seeds: Sequence[int]) -> list[Step]:
    """Everything that has to be built and trained."""
    found = []
    for run in (Run(folder, seed) for seed in seeds):
        found += [*proposal_steps(run), distillation_step(run, PROPOSALS)]
        for source in SOURCES:
            found += _steps_of(run, source)
    return only_once(found)


def _steps_of(run: Run, source: Source) -> list[Step]:
    weights = str(refined(run, PROPOSALS)) if source.refined else SHIPPED_TAG
    teacher = clip_options(weights, VIT_ARCHITECTURE)
    needs = (run.step(PROPOSALS),) if source.refined else ()
    names = _vocabulary_step(run, source, teacher, needs)
    cache = cache_step(run, name=source.cache, teacher=teacher, options=source.options, needs=needs)
    trained = METHOD.step(
        run,
        name=source.method,
        about=f" from {source.title}",
        options=(
            *("MODEL.VILD.DISTILLATION.CACHE", str(cache.folder)),
            *("MODEL.OVD.VOCABULARY", str(names.product)),
        ),
        needs=(cache.name, names.name),
    )
    return [names, cache, trained]


def _vocabulary_step(
    run: Run, source: Source, teacher: Sequence[str], needs: Sequence[str]
) -> Step:
    output = run.output(source.cache + "_vocabulary") / "vocabulary.safetensors"
    return Step(
        run.step(output.parent.name),
        f"Write the category names as text embeddings, {source.title}",
        "tools/build_vocabulary.py",
        ("--dataset", TRAIN_SET, *teacher, "--output", str(output)),
        output,
        needs=("data", *needs),
        folder=output.parent,
    )


def collect_rows(folder: Path, seeds: Sequence[int], seconds: Mapping[str, float]) -> list[Row]:
    """One row per source and seed.

    Args:
        folder: of the runs.
        seeds: of the runs.
        seconds: name of a step -> how long it took.
    """
    rows = []
    for run in (Run(folder, seed) for seed in seeds):
        crops = EmbeddingCache(run.output(CROPS.cache))
        for source in SOURCES:
            names = Vocabulary.load(
                run.output(source.cache + "_vocabulary") / "vocabulary.safetensors"
            )
            found = compare_caches(crops, EmbeddingCache(run.output(source.cache)), names)
            results = read_results(run.output(source.method))
            rows.append(
                {
                    "source": source.title,
                    "seed": run.seed,
                    "build seconds": round(seconds[run.step(source.cache)], 1),
                    "cosine to crops": round(found[ALL].cosine, 4),
                    "same nearest name": round(100 * (found[ALL].same_name or 0.0), 2),
                    **{c: round(results[task][key], 3) for c, (task, key) in METRICS.items()},
                }
            )
    return rows


def table_of(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, Markdown."""
    columns = [name for name in rows[0] if name not in ("source", "seed")]
    body = []
    for title in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == title]
        cells = [
            spread([row[name] for row in mine], digits=3 if name.startswith("cosine") else 1)
            for name in columns
        ]
        body.append([title, *cells])
    return tabulate(
        body, ["embeddings of proposals", *columns], tablefmt="pipe", disable_numparse=True
    )


def section(document: Document) -> str:
    """Of docs/results-clipself.md."""
    return f"""## CLIPSelf as ViLD's teacher

One pass of the ViT per image in place of two crops per proposal (25 proposals per image of 160
pixels), as `tools/cache.py build --teacher dense` makes them; then ViLD-ensemble learns from each.
"Build seconds" are those of the whole command, start included, two commands at a time; the cosine
and the share of equal nearest names are with the embeddings of crops.

{table_of(document["rows"])}

{origin(document)}; numbers: [results/clipself_teacher.json](results/clipself_teacher.json).
"""
