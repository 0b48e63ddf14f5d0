"""Speed as ratios of two things measured in one run, each beside what arithmetic predicts.

Times on a shared machine come and go, so the things to compare take turns on the same inputs, and a
ratio is the median over the rounds. The prediction is the ratio of floating-point operations of
convolutions and matrix products (`torch.utils.flop_counter`); pooling, NMS and matching are not in
it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ovd_d2.benchmark.tables import load_method
from ovd_d2.demo.pictograms import VAL_SET, Run
from ovd_d2.engine.build import build_optimizer, build_test_loader, build_train_loader
from ovd_d2.engine.run import load_config
from ovd_d2.modeling import CLIPClassifier
from ovd_d2.modeling.detection import select_detections
from ovd_d2.scoring import text_probabilities
from ovd_d2.vocabulary import Vocabulary

METHODS = ("supervised_base", "vild_text", "vild", "vild_ensemble", "clip_crops")
VOCABULARY_SIZES = (80, 1203, 20000)
HEAD_REGIONS, HEAD_DIM = 1000, 512  # proposals of an LVIS image, width of CLIP ViT-B/32
ROUNDS = {"training": 12, "loading": 20, "inference": 30, "vocabulary": 5}

Timed = Callable[[int], Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """How much longer one thing takes than another.

    Attributes:
        name: what over what.
        measured: median over rounds of time over time.
        predicted: operations over operations; None where nothing can be predicted.
    """

    name: str
    measured: float
    predicted: float | None


def take_turns(things: Mapping[str, Timed], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of each thing in each round.

    Args:
        things: called with the number of the round; the first round is not counted. Who begins
            changes from round to round.
        rounds: counted ones.
        title: of the progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in things}
    names = list(things)
    for number in tqdm(range(rounds + 1), desc=title, unit="round"):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            things[name](number)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_of(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median of the rounds' ratios: what slows the machine down for a while hits both."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def operations_of(thing: Callable[[], Any]) -> int:
    """Floating-point operations of convolutions and matrix products."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know fused attention
    try:
        with FlopCounterMode(display=False) as counter:
            thing()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def measure(folder: Path, seed: int = 0) -> list[Row]:
    """All ratios and the vocabulary's cost, as rows for the JSON document.

    Args:
        folder: of the demo; METHODS are trained there.
    """
    run = Run(folder, seed)
    ratios = [*training_ratios(run), *loading_ratios(run), *inference_ratios(run)]
    rows: list[Row] = [
        {
            "name": ratio.name,
            "measured": round(ratio.measured, 3),
            "predicted": None if ratio.predicted is None else round(ratio.predicted, 3),
        }
        for ratio in ratios
    ]
    return rows + vocabulary_cost()


def training_ratios(run: Run) -> list[Ratio]:
    """A training step, optimiser included, of ViLD and ViLD-ensemble over ViLD-text."""
    cfgs = {name: _training_config(run, name) for name in ("vild_text", "vild", "vild_ensemble")}
    batches = list(islice(build_train_loader(cfgs["vild"]), ROUNDS["training"] + 1))
    steps = {name: _training_step(run, cfg, batches) for name, cfg in cfgs.items()}
    with EventStorage():
        operations = {name: operations_of(partial(step, 0)) for name, step in steps.items()}
        seconds = take_turns(steps, ROUNDS["training"], "training steps")
    return [
        Ratio(
            f"training step, {name} / vild_text",
            ratio_of(seconds, name, "vild_text"),
            operations[name] / operations["vild_text"],
        )
        for name in ("vild", "vild_ensemble")
    ]


def _training_config(run: Run, method: str) -> CfgNode:
    options = ["MODEL.OVD.DISTILLATION.CACHE", str(run.cache), "DATALOADER.NUM_WORKERS", "0"]
    return load_config(f"configs/pictograms/{method}.yaml", options)


def _training_step(run: Run, cfg: CfgNode, batches: Sequence[Any]) -> Timed:
    _, model = load_method(run, Path(cfg.OUTPUT_DIR).name)
    model.train()
    optimizer = build_optimizer(cfg, model)

    def step(number: int) -> None:
        losses = model(batches[number])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def loading_ratios(run: Run) -> list[Ratio]:
    """A batch of images with cached proposals over one without, in one process."""
    loaders = {name: _training_config(run, name) for name in ("vild", "vild_text")}
    iterators = {name: iter(build_train_loader(cfg)) for name, cfg in loaders.items()}
    things = {name: lambda _, source=source: next(source) for name, source in iterators.items()}
    seconds = take_turns(things, ROUNDS["loading"], "loading")
    # The same images in the same order (one seed): the floor is a batch without cache.
    return [Ratio("loading, with / without cache", ratio_of(seconds, "vild", "vild_text"), 1.0)]


def inference_ratios(run: Run) -> list[Ratio]:
    """One image: ViLD over Mask R-CNN of its width, ViLD-ensemble and CLIP on crops over ViLD."""
    models = {name: load_method(run, name) for name in METHODS}
    cfg, _ = models["vild"]
    images = list(islice(_test_loader(cfg), ROUNDS["inference"] + 1))
    things = {name: _inference(model, images) for name, (_, model) in models.items()}
    operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
    seconds = take_turns(things, ROUNDS["inference"], "inference")
    pairs = [
        ("vild", "supervised_base", "vild / Mask R-CNN"),
        ("vild_ensemble", "vild", "vild_ensemble / vild"),
        ("clip_crops", "vild", "CLIP on crops / vild"),
    ]
    return [
        Ratio(
            f"inference, {title}",
            ratio_of(seconds, over, under),
            operations[over] / operations[under],
        )
        for over, under, title in pairs
    ]


def _test_loader(cfg: CfgNode) -> DataLoader:
    return build_test_loader(cfg, VAL_SET)


def _inference(model: nn.Module, images: Sequence[Any]) -> Timed:
    def infer(number: int) -> None:
        with torch.no_grad():
            model(images[number])

    return infer


def vocabulary_cost() -> list[Row]:
    """Classifying and selecting among the names: time and the tensor it needs, by their number."""
    rows = []
    for size in VOCABULARY_SIZES:
        thing = _classification(size)
        seconds = take_turns({"head": thing}, ROUNDS["vocabulary"], f"{size} names")["head"]
        rows.append(
            {
                "name": f"classify and select, {HEAD_REGIONS} regions, {size:,} names",
                "milliseconds": round(1000 * statistics.median(seconds), 1),
                "score_megabytes": round(4 * HEAD_REGIONS * (size + 1) / 1e6, 1),
            }
        )
    return rows


def _classification(size: int) -> Timed:
    generator = torch.Generator().manual_seed(0)
    units = nn.functional.normalize(torch.randn(size, HEAD_DIM, generator=generator), dim=1)
    classifier = CLIPClassifier(embedding_dim=HEAD_DIM, num_classes=size, temperature=0.01).eval()
    classifier.set_vocabulary(Vocabulary([str(k) for k in range(size)], units))
    regions = nn.functional.normalize(
        torch.randn(HEAD_REGIONS, HEAD_DIM, generator=generator), dim=1
    )
    corners = 800 * torch.rand(HEAD_REGIONS, 2, generator=generator)
    boxes = torch.cat([corners, corners + 200], dim=1)

    def classify(_: int) -> None:
        with torch.no_grad():
            probs = text_probabilities(classifier(regions))
            select_detections(
                [boxes],
                [probs],
                [(1024, 1024)],
                score_threshold=0.0,
                nms_threshold=0.5,
                limit=300,
            )

    return classify


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: the ratios, then the vocabulary's cost."""
    ratios = [row for row in rows if "measured" in row]
    costs = [row for row in rows if "milliseconds" in row]
    body = [
        [row["name"], f"{row['measured']:.2f}", *_against(row["measured"], row["predicted"])]
        for row in ratios
    ]
    first = tabulate(
        body,
        ["time over time", "measured", "predicted", "of predicted"],
        tablefmt="pipe",
        colalign=("left", "right", "right", "right"),
        disable_numparse=True,
    )
    second = tabulate(
        [[row["name"], row["milliseconds"], row["score_megabytes"]] for row in costs],
        ["the vocabulary's cost", "ms", "MB of scores"],
        tablefmt="pipe",
    )
    return f"{first}\n\n{second}"


def _against(measured: float, predicted: float | None) -> tuple[str, str]:
    if predicted is None:
        return "-", "-"
    return f"{predicted:.2f}", f"{100 * measured / predicted:.0f} %"
