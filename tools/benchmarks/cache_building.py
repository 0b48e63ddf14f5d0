"""What building the cache costs: the pipeline beside the teacher's bare forward pass and beside the
naive way, and where the time goes.

Pictures and proposals are made up, of the sizes that LVIS has; no quantity here depends on what is
to be seen in them. The things to compare take turns, and a ratio is the median over the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tabulate import tabulate

from benchmarks.cache_reading import LVIS_IMAGES, ROWS, make_manifest
from benchmarks.speed import Row, ratio_of, time_alternately
from ovd_d2.cache import DatasetInfo, Manifest, ProposalStore, RecordWriter, dataset_fingerprint
from ovd_d2.clip import loading
from ovd_d2.clip.crops import VILD_RECIPE, image_on_device
from ovd_d2.clip.device_crops import resize_crops
from ovd_d2.clip.recipe import Recipe
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.engine.cache_builder import build_cache, load_image

NAME = "made_up"
SCALES = len(VILD_RECIPE.scales)
STAGES = ("decode", "crop", "encode", "write")
NAIVE_PART = 4  # the naive way gets every 4th image: it would take most of the time

Entry = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A teacher and what it is to embed.

    Attributes:
        architecture, pretrained: of the teacher; pretrained "" means random weights.
        image_size: (height, width) of the JPEG files.
        images, proposals: how many, and boxes in each.
        batch_size: crops in a forward pass, of all that is compared.
        rounds: counted ones.
        device: of the teacher.
    """

    architecture: str
    pretrained: str
    image_size: tuple[int, int]
    images: int
    proposals: int
    batch_size: int
    rounds: int
    device: str = "cpu"

    @property
    def crops(self) -> int:
        """Of all images."""
        return self.images * self.proposals * SCALES

    @property
    def name(self) -> str:
        """What a table says."""
        height, width = self.image_size
        weights = self.pretrained or "random"
        return f"{self.architecture} ({weights}), {width} x {height}, {self.device}"


def workloads(device: str, architecture: str | None = None) -> list[Workload]:
    """What is measured by default: on the CPU a teacher small enough for everything around it to
    matter, on LVIS's images and on larger ones, and a teacher of the size that people use; on a
    GPU the latter at 1,024 pixels.

    Args:
        architecture: measure this one alone, with random weights.
    """
    small = Workload("Pictogram-RN", "shipped", (480, 640), 16, ROWS, 256, 5)
    usual = Workload("ViT-B-32", "", (480, 640), 2, 32, 32, 3)
    if device != "cpu":
        usual = Workload("ViT-B-32", "", (1024, 1024), 64, ROWS, 512, 5, device)
    if architecture is not None:
        return [replace(usual, architecture=architecture)]
    large_images = replace(small, image_size=(1024, 1024), images=8)
    return [small, large_images, usual] if device == "cpu" else [usual]


def measure(work: Workload) -> Row:
    """One row: rates, ratios and shares of one workload; made-up data in a temporary folder."""
    teacher = load_teacher(work)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = write_images(folder / "images", work)
        proposals = write_proposals(folder / "proposals", entries, work.proposals)
        rates = build_rates(work, teacher, entries, proposals, folder / "cache")
        shares = stage_shares(work, teacher, entries, proposals, folder / "written")
    hours = LVIS_IMAGES * ROWS * SCALES / rates["crops_per_second"] / 3600
    return {
        "name": work.name,
        "batch_size": work.batch_size,
        "precision": "bfloat16" if _amp(teacher) else "float32",
        **rates,
        "lvis_hours": round(hours, 2),
        "shares": shares,
    }


def build_rates(
    work: Workload,
    teacher: CLIPTeacher,
    entries: Sequence[Entry],
    proposals: ProposalStore,
    folder: Path,
) -> dict[str, float]:
    """Crops a second of `build_cache`, and its ratio to the bare forward pass and the naive way."""
    few = entries[: max(1, len(entries) // NAIVE_PART)]
    batches = -(-work.crops // work.batch_size)
    crops = {
        "build": work.crops,
        "forward": batches * work.batch_size,
        "naive": len(few) * work.proposals * SCALES,
    }
    things: dict[str, Callable[[int], Any]] = {
        "build": partial(build, entries, proposals, teacher, folder, None, work.batch_size),
        "forward": partial(_forward, teacher, work.batch_size, batches),
        "naive": partial(_naive, few, proposals, teacher, work.batch_size),
    }
    seconds = time_alternately(things, work.rounds, f"build, {work.name}")
    a_crop = {name: [s / crops[name] for s in values] for name, values in seconds.items()}
    return {
        "crops_per_second": round(1 / statistics.median(a_crop["build"]), 1),
        "of_forward": round(ratio_of(a_crop, "forward", "build"), 3),
        "over_naive": round(ratio_of(a_crop, "naive", "build"), 2),
        "forward_over_naive": round(ratio_of(a_crop, "naive", "forward"), 2),
    }


def stage_shares(
    work: Workload,
    teacher: CLIPTeacher,
    entries: Sequence[Entry],
    proposals: ProposalStore,
    folder: Path,
) -> dict[str, float]:
    """Each stage alone, by one thread, on the same images: its part of their sum."""
    count = len(entries) * (work.rounds + 1)
    images = [{"file_name": "", "image_id": number} for number in range(count)]
    manifest = replace(
        make_manifest("float16", count, teacher.embedding_dim),
        dataset=DatasetInfo(NAME, dataset_fingerprint(images), count),
    )
    with (
        RecordWriter(folder, manifest, images=images, images_per_shard=len(entries)) as writer,
        _one_thread(),
    ):
        stages = _Stages(teacher, entries, proposals, writer, work.batch_size)
        things = {name: getattr(stages, name) for name in STAGES}
        seconds = time_alternately(things, work.rounds, f"stages, {work.name}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: round(value / sum(medians.values()), 3) for name, value in medians.items()}


class _Stages:
    """The stages of a build one after the other, on images whose other stages are done."""

    def __init__(
        self,
        teacher: CLIPTeacher,
        entries: Sequence[Entry],
        proposals: ProposalStore,
        writer: RecordWriter,
        batch_size: int,
    ) -> None:
        self.teacher, self.entries, self.writer = teacher, entries, writer
        self.sources = []
        for entry in entries:
            pixels = load_image(entry)
            boxes = proposals[entry["image_id"]].boxes
            windows = VILD_RECIPE.windows(boxes, *pixels.shape[:2])
            self.sources.append((image_on_device(pixels, teacher.device), windows))
        self.records = [proposals[entry["image_id"]] for entry in entries]
        self.batch = _noise(teacher, batch_size)
        self.batches = len(entries) * len(self.sources[0][1]) / batch_size
        self.rows = torch.nn.functional.normalize(
            torch.randn(len(self.records[0]), teacher.embedding_dim), dim=1
        )

    def decode(self, _: int) -> None:
        for entry in self.entries:
            image_on_device(load_image(entry), self.teacher.device)
        _synchronize(self.teacher)

    def crop(self, _: int) -> None:
        for pixels, windows in self.sources:
            for part in windows.split(len(self.batch)):
                resize_crops([(pixels, part)], self.teacher.preprocessing)
        _synchronize(self.teacher)

    def encode(self, _: int) -> None:
        for _ in range(round(self.batches)):
            _encode(self.teacher, self.batch)
        _synchronize(self.teacher)

    def write(self, number: int) -> None:
        for place, record in enumerate(self.records):
            tensors = {"boxes": record.boxes, "objectness": record.objectness}
            image_id = number * len(self.records) + place
            self.writer.add(image_id, {**tensors, "embeddings": self.rows})


def load_teacher(work: Workload) -> CLIPTeacher:
    """The workload's teacher, with random weights where it names none."""
    if work.pretrained:
        return loading.load_teacher(work.architecture, work.pretrained, work.device)
    torch.manual_seed(0)
    model = untrained_model(work.architecture)
    return CLIPTeacher(
        model,
        open_clip.get_tokenizer(work.architecture),
        open_clip.get_model_preprocess_cfg(model),
        architecture=work.architecture,
        device=work.device,
    )


# Made-up data ------------------------------------------------------------------------------------


def write_images(folder: Path, work: Workload, seed: int = 0) -> list[Entry]:
    """JPEG files with the power spectrum of photographs, as data set dicts."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, (height, width) = np.random.default_rng(seed), work.image_size
    entries = []
    for image_id in range(work.images):
        path = folder / f"{image_id:06d}.jpg"
        Image.fromarray(make_image(height, width, rng)).save(path, quality=90)
        entry = {"file_name": str(path), "image_id": image_id, "height": height, "width": width}
        entries.append(entry)
    return entries


def make_image(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: noise whose amplitude falls with its frequency, as in nature."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    channels = [
        np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, (height, width))
        for _ in range(3)
    ]
    pixels = np.stack(channels, axis=2)
    pixels = 128 + 60 * (pixels - pixels.mean()) / pixels.std()
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_proposals(
    folder: Path, entries: Sequence[Entry], count: int, seed: int = 0
) -> ProposalStore:
    """Boxes of all sizes that anchors have on an image: sides log-uniform, 1/40 to 5/6 of it."""
    rng = np.random.default_rng(seed)
    info = DatasetInfo(NAME, dataset_fingerprint(entries), len(entries))
    with RecordWriter(folder, Manifest("proposals", info, "made-up"), images=entries) as writer:
        for entry in entries:
            boxes = torch.from_numpy(make_boxes(entry["height"], entry["width"], count, rng))
            objectness = torch.linspace(1, 0, count)
            writer.add(entry["image_id"], {"boxes": boxes, "objectness": objectness})
        writer.finish()
    return ProposalStore(folder)


def make_boxes(height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) float32 XYXY inside the image."""
    side = np.exp(rng.uniform(np.log(height / 40), np.log(height * 5 / 6), count))
    root = np.exp(rng.normal(0, 0.25, count))  # of the aspect ratio
    size = np.minimum(np.stack([side * root, side / root], axis=1), [width, height])
    corner = rng.uniform(size=(count, 2)) * ([width, height] - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


# What is compared --------------------------------------------------------------------------------


def build(
    entries: Sequence[Entry],
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    folder: Path,
    recipe: Recipe | None,
    batch_size: int | None,
    _: int,
) -> None:
    """One build from scratch, in each round."""
    build_cache(
        entries,
        proposals,
        teacher,
        folder,
        dataset_name=NAME,
        recipe=recipe,
        batch_size=batch_size,
        overwrite=True,
        progress=False,
    )


def _forward(teacher: CLIPTeacher, batch_size: int, batches: int, _: int) -> None:
    """Nothing but full batches of the teacher, with all the threads that PyTorch has."""
    batch = _noise(teacher, batch_size)
    for _ in range(batches):
        _encode(teacher, batch)
    _synchronize(teacher)


def _naive(
    entries: Sequence[Entry],
    proposals: ProposalStore,
    teacher: CLIPTeacher,
    batch_size: int,
    _: int,
) -> None:
    """Image by image and crop by crop through open_clip's transform; nothing is written."""
    transform = _open_clip_transform(teacher)
    for entry in entries:
        image = Image.open(entry["file_name"]).convert("RGB")
        boxes = proposals[entry["image_id"]].boxes
        windows = VILD_RECIPE.windows(boxes, image.height, image.width).tolist()
        crops = (transform(image.crop(tuple(window))) for window in windows)
        rows = []
        while part := list(islice(crops, batch_size)):
            rows.append(_encode(teacher, torch.stack(part)).cpu())
        VILD_RECIPE.combine(torch.cat(rows))


def _open_clip_transform(teacher: CLIPTeacher) -> Callable[[Image.Image], torch.Tensor]:
    like = teacher.preprocessing
    cfg = PreprocessCfg(
        size=like.image_size,
        mean=like.mean,
        std=like.std,
        interpolation=like.interpolation,
        resize_mode=like.resize_mode,
    )
    return image_transform_v2(cfg, is_train=False)


def _encode(teacher: CLIPTeacher, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=_amp(teacher)):
        return teacher.encode_images(batch)


def _amp(teacher: CLIPTeacher) -> bool:
    return teacher.device.type == "cuda"  # the default of `build_cache`


def _noise(teacher: CLIPTeacher, batch_size: int) -> torch.Tensor:
    batch = torch.randn(batch_size, 3, *teacher.image_size, device=teacher.device)
    return batch.contiguous(memory_format=torch.channels_last)


def _synchronize(teacher: CLIPTeacher) -> None:
    if teacher.device.type == "cuda":
        torch.cuda.synchronize(teacher.device)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: rates and ratios, then where the time goes."""
    built = [row for row in rows if "of_forward" in row]
    rates = [
        [
            row["name"],
            row["batch_size"],
            row["precision"],
            f"{row['crops_per_second']:,.0f}",
            f"{row['of_forward']:.2f}",
            f"{row['over_naive']:.1f}",
            f"{row['forward_over_naive']:.1f}",
            f"{row['lvis_hours']:,.1f}",
        ]
        for row in built
    ]
    header = [
        "build",
        "batch",
        "precision",
        "crops/s",
        "of bare forward",
        "over naive",
        "forward over naive",
        "hours for LVIS",
    ]
    shares = [
        [row["name"], *(f"{100 * row['shares'][stage]:.1f} %" for stage in STAGES)] for row in built
    ]
    first = tabulate(rates, header, tablefmt="pipe", disable_numparse=True)
    second = tabulate(
        shares, ["share of the work", *STAGES], tablefmt="pipe", disable_numparse=True
    )
    return f"{first}\n\n{second}"
