"""Speed as ratios of two things measured in one run, each beside what arithmetic predicts.

Times on a shared machine come and go, so the things to compare take turns on the same inputs, and a
ratio is the median over the rounds. The prediction is the ratio of floating-point operations of
convolutions and matrix products (`torch.utils.flop_counter`); pooling, NMS and matching are not in
it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  (its operators, of torch.ops)
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.memory import peak_memory
from benchmarks.tables import load_method
from ovd_d2.engine.build import build_test_loader, build_train_loader
from ovd_d2.engine.optimization import build_optimizer
from ovd_d2.engine.run import load_config
from ovd_d2.modeling import CLIPClassifier
from ovd_d2.modeling.detection import select_detections
from ovd_d2.pictograms.showcase import steps_of
from ovd_d2.pictograms.steps import (
    VAL_SET,
    Run,
)
from ovd_d2.pipeline.step import Step
from ovd_d2.scoring import image_logits, in_blocks, text_probabilities, vild_ensemble
from ovd_d2.vild.showcase import SHOWCASE, cache_of
from ovd_d2.vocabulary import Vocabulary

METHODS = ("supervised_base", "vild_text", "vild", "vild_ensemble", "clip_crops")
VOCABULARY_SIZES = (80, 1203, 20000)
HEAD_REGIONS, HEAD_DIM = 1000, 512  # proposals of an LVIS image, width of CLIP ViT-B/32
HEAD_TEMPERATURE = 0.01
# What SOLVER.AMP means on a GPU; processors have no float16 arithmetic to speak of.
HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}
ROUNDS = {"training": 12, "loading": 200, "inference": 30, "vocabulary": 5}

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


def time_alternately(
    things: Mapping[str, Timed],
    rounds: int,
    title: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each function in each round; every round calls all of them, one after the other.

    So what slows the machine for a while slows all alike.

    Args:
        things: called with the number of the round; the first round is not counted. Which one
            begins changes from round to round.
        rounds: those that are counted.
        title: of the progress bar.
        clock: in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in things}
    names = list(things)
    for number in tqdm(range(rounds + 1), desc=title, unit="round"):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            things[name](number)
            _wait_for_device()
            if number > 0:
                seconds[name].append(clock() - start)
    return seconds


def _wait_for_device() -> None:
    """A GPU answers before it is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio_of(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median of the rounds' ratios: what slows the machine down for a while hits both."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def operations_of(thing: Callable[[], Any]) -> int:
    """Floating-point operations of convolutions and matrix products."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know fused attention
    try:
        counter = FlopCounterMode(display=False, custom_mapping=_OPERATIONS)
        with sdpa_kernel(SDPBackend.MATH), counter:
            thing()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def _deformable(
    image: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any, **__: Any
) -> int:
    """Its matrix product; finding the inputs of the taps is less than a fiftieth of it."""
    return 2 * image[0] * math.prod(out_shape[2:]) * math.prod(weight)


# What the counter does not know.
_OPERATIONS = {torch.ops.torchvision.deform_conv2d: _deformable}


def steps(run: Run) -> list[Step]:
    """What must have been trained and evaluated before."""
    return steps_of(SHOWCASE, [run], SHOWCASE.select(METHODS))


def measure(folder: Path, seed: int = 0, device: str = "cpu") -> list[Row]:
    """All ratios and the vocabulary's cost, as rows for the JSON document.

    Args:
        folder: of the demo; METHODS are trained there.
        seed: whose trainings are taken.
        device: that everything runs on.
    """
    run = Run(folder, seed)
    ratios = [
        *training_ratios(run, device),
        *loading_ratios(run),
        *inference_ratios(run, device),
    ]
    return rows_of(ratios) + vocabulary_cost(device)


def rows_of(ratios: Sequence[Ratio]) -> list[Row]:
    """For the JSON document."""
    return [
        {
            "name": ratio.name,
            "measured": round(ratio.measured, 3),
            "predicted": None if ratio.predicted is None else round(ratio.predicted, 3),
        }
        for ratio in ratios
    ]


def training_ratios(run: Run, device: str) -> list[Ratio]:
    """A training step, optimiser included, of ViLD and ViLD-ensemble over ViLD-text."""
    methods = ("vild_text", "vild", "vild_ensemble")
    cfgs = {name: training_config(run, name, device) for name in methods}
    batches = list(islice(build_train_loader(cfgs["vild"]), ROUNDS["training"] + 1))
    steps = {
        name: training_step(cfg, load_method(run, SHOWCASE.method(name), device)[1], batches)
        for name, cfg in cfgs.items()
    }
    with EventStorage():
        operations = {name: operations_of(partial(step, 0)) for name, step in steps.items()}
        seconds = time_alternately(steps, ROUNDS["training"], "training steps")
    return [
        Ratio(
            f"training step, {name} / vild_text",
            ratio_of(seconds, name, "vild_text"),
            operations[name] / operations["vild_text"],
        )
        for name in ("vild", "vild_ensemble")
    ]


def training_config(run: Run, method: str, device: str = "cpu") -> CfgNode:
    """The method's config as the demo trains it, but loading in this process."""
    config = SHOWCASE.method(method).config
    options = ["MODEL.VILD.DISTILLATION.CACHE", str(cache_of(run)), "DATALOADER.NUM_WORKERS", "0"]
    return load_config(config, [*options, "MODEL.DEVICE", device])


def training_step(
    cfg: CfgNode, model: nn.Module, batches: Sequence[Any], *, amp: bool = False
) -> Timed:
    """A step as Detectron2's trainers make it, AMPTrainer's where `amp`."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    device = torch.device(cfg.MODEL.DEVICE).type
    scaler = torch.amp.GradScaler(device, enabled=amp and HALF[device] == torch.float16)

    def step(number: int) -> None:
        with torch.autocast(device, HALF[device], enabled=amp):
            loss = sum(model(batches[number]).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def loading_ratios(run: Run) -> list[Ratio]:
    """A batch of small images with cached proposals over one without, in one process.

    (Of images as large as LVIS trains on: :mod:`benchmarks.cache_loading`.)
    """
    iterators = {}
    for name in ("vild", "vild_text"):
        seed_all_rng(run.seed)  # of the sampler: both see the same images in the same order
        iterators[name] = iter(build_train_loader(training_config(run, name)))
    things = {name: lambda _, source=source: next(source) for name, source in iterators.items()}
    seconds = time_alternately(things, ROUNDS["loading"], "loading")
    return [Ratio("loading, with / without cache", ratio_of(seconds, "vild", "vild_text"), 1.0)]


def inference_ratios(run: Run, device: str) -> list[Ratio]:
    """One image: ViLD over Mask R-CNN of its width, ViLD-ensemble and CLIP on crops over ViLD."""
    models = {name: load_method(run, SHOWCASE.method(name), device) for name in METHODS}
    things = {name: inference(model, images_of(cfg)) for name, (cfg, model) in models.items()}
    cfg, again = load_method(run, SHOWCASE.method("vild"), device)
    things["head_twice"] = inference(_with_head_twice(again), images_of(cfg))
    operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
    seconds = time_alternately(things, ROUNDS["inference"], "inference")
    pairs = [
        ("vild", "supervised_base", "vild / Mask R-CNN"),
        ("vild_ensemble", "vild", "vild_ensemble / vild"),
        ("vild_ensemble", "head_twice", "vild_ensemble / vild that runs its head twice"),
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


def _with_head_twice(model: nn.Module) -> nn.Module:
    """What a second head of equal size costs, with nothing else of the ensemble."""
    heads: Any = model.roi_heads

    def again(head: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        heads.box_predictor.embed(head.forward(*inputs))  # not __call__: this hook would come again

    heads.box_head.register_forward_hook(again)
    return model


def images_of(cfg: CfgNode) -> list[Any]:
    """The first test images, as the method takes them: with the original for CLIP on crops."""
    return list(islice(build_test_loader(cfg, VAL_SET), ROUNDS["inference"] + 1))


def inference(model: nn.Module, images: Sequence[Any]) -> Timed:
    """One of the images, as the evaluation runs it."""

    def infer(number: int) -> None:
        with torch.no_grad():
            model(images[number])

    return infer


def vocabulary_cost(device: str = "cpu") -> list[Row]:
    """Classifying and selecting among the names, by their number and branches: time and memory."""
    return [
        _cost_of(size, branches, device)
        for branches in ("text branch", "ensemble")
        for size in VOCABULARY_SIZES
    ]


def _cost_of(size: int, branches: str, device: str) -> Row:
    """Milliseconds; megabytes at the worst moment, and of the scores alone, which must be."""
    thing = classification(size, ensemble=branches == "ensemble", device=device)
    title = f"{size:,} names, {branches}"
    seconds = time_alternately({"head": thing}, ROUNDS["vocabulary"], title)["head"]
    return {
        "name": f"classify and select, {HEAD_REGIONS:,} regions, {title}",
        "milliseconds": round(1000 * statistics.median(seconds), 1),
        "peak_megabytes": round(peak_memory(partial(thing, 0), device) / 1e6, 1),
        "score_megabytes": round(4 * HEAD_REGIONS * size / 1e6, 1),
    }


def classification(size: int, *, ensemble: bool = False, device: str = "cpu") -> Timed:
    """From embeddings of `HEAD_REGIONS` regions to detections among `size` names, in a model's way.

    Args:
        size: names, with random embeddings.
        ensemble: two branches instead of the text branch alone.
        device: that it runs on.
    """
    classifier = _classifier(size).to(device)
    generator = torch.Generator().manual_seed(0)
    regions = _units(HEAD_REGIONS, generator).to(device)
    corners = 800 * torch.rand(HEAD_REGIONS, 2, generator=generator)
    boxes = torch.cat([corners, corners + 200], dim=1).to(device)

    def mixed(logits: Tensor, image_logits: Tensor) -> Tensor:
        image_probs = image_logits.softmax(dim=1)
        return vild_ensemble(text_probabilities(logits), image_probs, classifier.novel)

    def scores() -> Tensor:  # as ViLDROIHeads
        logits = classifier(regions)
        if not ensemble:
            return text_probabilities(logits)
        others = image_logits(regions, classifier.text_embeddings, classifier.temperature)
        return in_blocks(mixed, logits, others, into=others)

    def classify(_: int) -> None:
        with torch.no_grad():
            select_detections(
                [boxes],
                [scores()],
                [(1024, 1024)],
                score_threshold=0.0,
                nms_threshold=0.5,
                limit=300,
            )

    return classify


def _classifier(size: int) -> CLIPClassifier:
    units = _units(size, torch.Generator().manual_seed(1))
    classifier = CLIPClassifier(
        embedding_dim=HEAD_DIM, num_classes=size, temperature=HEAD_TEMPERATURE
    )
    classifier.set_vocabulary(Vocabulary([str(k) for k in range(size)], units))
    return classifier.eval()


def _units(rows: int, generator: torch.Generator) -> Tensor:
    return nn.functional.normalize(torch.randn(rows, HEAD_DIM, generator=generator), dim=1)


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
        [
            [row["name"], row["milliseconds"], row.get("peak_megabytes"), row["score_megabytes"]]
            for row in costs
        ],
        ["the vocabulary's cost", "ms", "MB at most", "MB of scores"],
        tablefmt="pipe",
    )
    return f"{first}\n\n{second}"


def _against(measured: float, predicted: float | None) -> tuple[str, str]:
    if predicted is None:
        return "-", "-"
    return f"{predicted:.2f}", f"{100 * measured / predicted:.0f} %"
