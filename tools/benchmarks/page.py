"""docs/results.md from the JSON documents of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import speed, tables
from benchmarks.documents import Document, origin
from benchmarks.phrases import section as phrases_section
from benchmarks.stored_types import table_of as stored_type_table
from benchmarks.sweeps import range_table as sweep_ranges
from benchmarks.tables import Documents
from ovd_d2.pictograms.dataset import GENERATOR_VERSION

INTRODUCTION = """# Results

All numbers below were measured on **Pictograms** (drawn glyphs, two processor cores), not on
photographs: they say whether the methods work, not how well they do on LVIS.
Novel = rare: 16 of 80 categories that have no box in training. `clip_crops` is the teacher on crops
of the first stage's proposals; ViLD's other rows are trained for equally many iterations (1,400,
the first stage's among them), and their backbones start from the image tower of a second small CLIP
that was trained on crops of base glyphs alone: what they know of novel categories has come through
the teacher and the vocabulary. F-ViT's rows are trained for 500 iterations on a frozen teacher.
GLIP's: 2,000 iterations, from the image tower that ViLD's backbone starts from and a small BERT
that has learnt what the teacher's text tower makes of words; the tuned ones: 200 iterations more,
from `glip_teacher` (`glip_small_teacher`), on boxes of all glyphs, of which none is novel to them.
Each section names the commit at which its command was run. A command takes up models that were
trained before, so the same method can differ between sections.
"""
# Version of Pictograms -> what numbers of the version before it have not seen.
CHANGES = {
    3: """\
Version 3 of Pictograms adds to the 1,000 training images of version 2 another 30 without any base
object (crowds, novel categories alone, nothing), which distillation and the RPN see, too.
""",
    4: """\
Version 4 of Pictograms names the objects of a caption in random order. Before, the largest came
first, so that a phrase's place told its size. Of the rows below GLIP's alone read captions.
""",
}


def page(
    demo: Documents | None,
    paper: Documents | None = None,
    sweeps: Document | None = None,
    stored_types: Document | None = None,
    speed: Document | None = None,
    phrases: Document | None = None,
) -> str:
    """docs/results.md from the JSON documents that there are."""
    there = [*(demo or {}).values(), *(paper or {}).values()]
    there += [one for one in (sweeps, stored_types, speed, phrases) if one is not None]
    parts = ["".join([INTRODUCTION, *_changes_since(there)])]
    if demo is not None:
        parts.append(_section("The demo's methods", "pictograms_demo", demo))
        parts += _expectations(demo)
    if paper is not None:
        parts.append(_section("The papers' tables", "pictograms_paper", paper))
        parts += _orderings(paper)
    if phrases is not None:
        parts.append(phrases_section(phrases))
    if sweeps is not None:
        parts.append(_sweeps_section(sweeps))
    if stored_types is not None:
        parts.append(_stored_types_section(stored_types))
    if speed is not None:
        parts.append(_speed_section(speed))
    return "\n".join(parts)


def _changes_since(documents: Sequence[Document]) -> Iterator[str]:
    """What is new in Pictograms since the oldest of the documents."""
    oldest = min((one["pictograms"] for one in documents), default=GENERATOR_VERSION)
    yield from (CHANGES[version] for version in range(oldest + 1, GENERATOR_VERSION + 1))


def _origin(document: Document) -> str:
    return f"{origin(document)}, on version {document['pictograms']} of Pictograms"


def _expectations(documents: Documents) -> Iterator[str]:
    rows = tables.rows_of(documents)
    for name, expected in tables.expectations_about(rows).items():
        table = tables.expectations_table(rows, expected)
        yield f"### What a faithful {name} must show\n\n{table}\n"


def _orderings(documents: Documents) -> Iterator[str]:
    rows = tables.rows_of(documents)
    claims = tables.orderings_about(rows)
    yield f"### The papers' orderings\n\n{tables.orderings_table(rows, claims)}\n"
    yield from (f"{reason}\n" for reason in tables.reasons_of(rows, claims))


def _seeds(document: Document) -> str:
    count = len({row["seed"] for row in document["rows"]})
    return "1 seed" if count == 1 else f"{count} seeds"


def _sweeps_section(document: Document) -> str:
    return f"""## One setting at a time

![box AP50 of base and novel categories against five settings of ViLD-ensemble](sweeps.png)

ViLD-ensemble, box AP50; a dot per seed ({_seeds(document)} here), the line their mean, dotted the
configs' own value.
{_origin(document)}; numbers:
[results/pictograms_sweeps.json](results/pictograms_sweeps.json).

{sweep_ranges(document["rows"])}
"""


def _section(title: str, name: str, documents: Documents) -> str:
    origins = "\n\n".join(
        f"{system}, {_seeds(document)}. {_origin(document)}."
        for system, document in documents.items()
    )
    return f"""## {title}

`pictograms_v1_val`, mean ± standard deviation over seeds, percent; raw numbers of every seed:
[results/{name}.json](results/{name}.json).

{origins}

{tables.table_of(tables.rows_of(documents))}
"""


def _stored_types_section(document: Document) -> str:
    return f"""## The cache's stored type

ViLD-ensemble from a cache in float16 and from one in int8 of the same proposals,
{_seeds(document)}, mean ± standard deviation, percent.
{_origin(document)}; numbers:
[results/pictograms_stored_types.json](results/pictograms_stored_types.json).

{stored_type_table(document["rows"])}
"""


def _speed_section(document: Document) -> str:
    return f"""## Speed

Ratios on two processor cores with the small Pictograms network, whose time is spent less on
convolutions than a large one's: pooling, NMS, matching and the pasting of masks count in full and
are not predicted. ViLD-ensemble takes less than its operations predict because its second head adds
nothing to those (it reads the same pooled features), while that head is run in full, as the row
beside ViLD with its head run twice shows. Mixed precision (`SOLVER.AMP.ENABLED`) and a compiled
backbone (`MODEL.OVD.COMPILE_BACKBONE`) are off unless a config says so; below 1 they help.
Compiling itself, a minute or two at the first images, is not counted. "Loading" is of images of
160 px, which take 2 ms each; of images as large as LVIS trains on:
[results-cache.md](results-cache.md). Online training ([online.md](online.md)) is predicted from the
teacher's bare forward pass, measured in the same run. Against Detectron2's own code:
[results-inference.md](results-inference.md).
{_origin(document)}; numbers:
[results/pictograms_speed.json](results/pictograms_speed.json).

{speed.table_of(document["rows"])}
"""
