"""Training and testing of the Pictogram CLIPs, the small teachers of the Pictograms data set.

Like the real CLIP they are trained on pairs of an image and a sentence about all things, novel ones
included, by the contrastive loss of Radford et al. (arXiv 2103.00020); they see no scene and no box
of the detection data set.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.preprocess import Preprocessing
from ovd_d2.clip.prompts import embed_names
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.files import atomic_write
from ovd_d2.pictograms.dataset.glyphs import PictogramCategory, build_categories
from ovd_d2.pictograms.dataset.plan import choose_frequencies
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_BASE_TAG, SHIPPED_TAG, VIT_ARCHITECTURE
from ovd_d2.pictograms.teacher_data import (
    HELD_OUT_STREAM,
    TRAIN_STREAM,
    CaptionedBatches,
    Crop,
    render_crops,
)

logger = logging.getLogger(__name__)

_MAX_LOGIT_SCALE = math.log(100.0)  # as in CLIP
_TRAIN_CONTEXT, _TRAIN_BOX_JITTER = (0.9, 1.65), 0.09  # wider than the test: 1x-1.5x, 0.06
_TIMED_STEPS = 30  # how many steps tell the speed for --minutes
_HALF_FROM = 1024  # smaller tensors (batch norm, biases) stay float32


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the weights, apart from the machine's arithmetic.

    Attributes:
        architecture: `Pictogram-RN` or `Pictogram-ViT`.
        lock_text: take text tower and temperature from the shipped Pictogram-RN and train the
            image tower alone (LiT, Zhai et al., arXiv 2111.07991): a ViT learns slowly where what
            it is to agree with still moves.
        categories: how many names (80 is the data set's default; above the number of glyphs the
            names are colour x glyph).
        base_only: leave out the data set's novel names, glyphs and all: not a teacher, but initial
            weights of a detector that have not seen what it must not know.
        crops_per_category: rendered once, seen many times through random windows.
        steps: optimisation steps.
        batch_size: objects per step, at most.
        learning_rate: peak of the cosine schedule.
        weight_decay: AdamW's, on matrices only.
        warmup_steps: linear warm-up.
        seed: of weights, crops and batches.
    """

    architecture: str = ARCHITECTURE
    lock_text: bool = False
    teach_patches: bool = False
    categories: int = 80
    base_only: bool = False
    crops_per_category: int = 600
    steps: int = 3600
    batch_size: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    seed: int = 0


RECIPES: Mapping[str, TrainingSettings] = {
    ARCHITECTURE: TrainingSettings(),
    VIT_ARCHITECTURE: TrainingSettings(
        VIT_ARCHITECTURE,
        lock_text=True,
        teach_patches=True,
        crops_per_category=1000,
        steps=5000,
        batch_size=48,
        learning_rate=1e-3,
    ),
}
"""What made the weights in this package, by architecture."""


def train(
    settings: TrainingSettings,
    checkpoint: Path,
    *,
    minutes: float | None = None,
    workers: int = 2,
    save_every_s: float = 60.0,
) -> dict[str, torch.Tensor]:
    """Trains a Pictogram CLIP; continues from `checkpoint` if it exists.

    Args:
        settings: see there.
        checkpoint: written every `save_every_s` seconds, atomically.
        minutes: if given, the number of steps is chosen to take about that long and logged.
        workers: processes that draw crops.

    Returns:
        The state dict.
    """
    categories = categories_of(settings)
    bank = render_crops(
        categories,
        settings.crops_per_category,
        stream=TRAIN_STREAM,
        seed=settings.seed,
        context=_TRAIN_CONTEXT,
        box_jitter=_TRAIN_BOX_JITTER,
        workers=workers,
    )
    run = _Run(settings, categories, bank)
    run.resume(checkpoint)
    if minutes is not None and run.step == 0:
        run.set_steps_for(minutes)
    run.loop(checkpoint, save_every_s)
    return {key: value.detach() for key, value in run.model.state_dict().items()}


def categories_of(settings: TrainingSettings) -> list[PictogramCategory]:
    """What is drawn and named in training. Novel are the rare ones of the data set of seed 0."""
    categories = build_categories(settings.categories)
    if not settings.base_only:
        return categories
    frequencies = choose_frequencies(categories, seed=0)
    pairs = zip(categories, frequencies, strict=True)
    return [category for category, frequency in pairs if frequency != "r"]


class _Run:
    """Model, optimiser and position of one training run."""

    def __init__(
        self,
        settings: TrainingSettings,
        categories: Sequence[PictogramCategory],
        bank: Sequence[Sequence[Crop]],
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.step = 0
        self.steps = settings.steps
        self.model = untrained_model(settings.architecture)
        if settings.lock_text:
            _lock_text(self.model, SHIPPED_BASE_TAG if settings.base_only else SHIPPED_TAG)
        self.model.to(memory_format=torch.channels_last)
        self._dense = DenseViT(self.model.visual) if settings.teach_patches else None
        self._batches = CaptionedBatches(
            categories, bank, seed=settings.seed, batch_size=settings.batch_size
        )
        cfg = open_clip.get_model_preprocess_cfg(self.model)
        self._preprocessing = Preprocessing.from_open_clip(cfg)
        self._tokenizer = open_clip.get_tokenizer(settings.architecture)
        self._loss = ClipLoss()
        groups = _parameter_groups(self.model, settings.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, fused=True)  # 49,408 token rows per step
        self._tokens: dict[str, torch.Tensor] = {}

    def resume(self, checkpoint: Path) -> None:
        if not checkpoint.is_file():
            return
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        settings = asdict(self.settings)
        differing = [
            key for key in settings if key != "steps" and saved["settings"][key] != settings[key]
        ]
        if differing:
            raise ValueError(
                f"{checkpoint} was made with other settings ({', '.join(differing)}); delete it to "
                "start over, or give the same settings"
            )
        self.model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.step, self.steps = saved["step"], saved["steps"]
        logger.info("Continuing %s at step %d of %d", checkpoint, self.step, self.steps)

    def save(self, checkpoint: Path) -> None:
        state = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "steps": self.steps,
        }
        with atomic_write(checkpoint) as temporary:
            torch.save(state, temporary)

    def set_steps_for(self, minutes: float) -> None:
        """Times the first steps, which stay part of the run, and chooses the number of steps."""
        self._train_step()  # the first one allocates
        start = time.perf_counter()
        for _ in range(_TIMED_STEPS):
            self._train_step()
        per_step = (time.perf_counter() - start) / _TIMED_STEPS
        self.steps = max(self.step + 1, round(minutes * 60 / per_step))
        logger.info("%.1f minutes are %d steps (--steps %d)", minutes, self.steps, self.steps)

    def loop(self, checkpoint: Path, save_every_s: float) -> None:
        saved = time.monotonic()
        with tqdm(total=self.steps, initial=self.step, desc="train", unit="step") as bar:
            while self.step < self.steps:
                loss, accuracy = self._train_step()
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix(loss=f"{loss:.3f}", batch_top1=f"{accuracy:.2f}")
                if time.monotonic() - saved > save_every_s:
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.save(checkpoint)

    def _train_step(self) -> tuple[float, float]:
        """One step; returns the loss and the share of images nearest to their own caption."""
        images, captions = self._batches.batch(self.step)
        pixels = self._preprocessing.prepare(images).contiguous(memory_format=torch.channels_last)
        tokens = torch.stack([self._tokens_of(caption) for caption in captions])  # (B, L)
        _set_learning_rate(self._optimizer, self._learning_rate())
        self.model.train()
        views = self._views(pixels)
        text = self.model.encode_text(tokens, normalize=True)  # (B, D)
        scale = self.model.logit_scale.exp()
        loss = sum(self._loss(view, text, scale) for view in views)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self._optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
            hits = (views[0] @ text.T).argmax(dim=1) == torch.arange(len(text))
        self.step += 1
        return float(loss.detach()), float(hits.float().mean())

    def _views(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(B, D) unit vectors of the images: the CLIP's own, then the mean of the dense map."""
        if self._dense is None:
            return [self.model.encode_image(pixels, normalize=True)]
        found = self._dense.run(pixels, image=True)
        assert found.image is not None and found.dense is not None
        return [found.image, F.normalize(found.dense.mean(dim=(2, 3)), dim=1)]

    def _tokens_of(self, caption: str) -> torch.Tensor:
        """(L,) token ids; the tokenizer is slow and captions come back often."""
        if caption not in self._tokens:
            self._tokens[caption] = self._tokenizer([caption])[0]
        return self._tokens[caption]

    def _learning_rate(self) -> float:
        peak, warmup = self.settings.learning_rate, self.settings.warmup_steps
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        done = (self.step - warmup) / max(1, self.steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _lock_text(model: torch.nn.Module, tag: str) -> None:
    """Gives a model all but the image tower of a shipped Pictogram-RN, and freezes it."""
    state = CLIPTeacher.from_open_clip(ARCHITECTURE, tag).state_dict()
    for name, parameter in model.named_parameters():
        if not name.startswith("visual."):
            parameter.data.copy_(state[name])
            parameter.requires_grad_(False)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for matrices and kernels; none for biases, norms, embeddings and the temperature."""
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        embedding = "token_embedding" in name or "positional_embedding" in name
        (free if parameter.ndim < 2 or embedding else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def save_weights(
    state: dict[str, torch.Tensor], path: str | os.PathLike[str], metadata: dict[str, str]
) -> None:
    """Writes a state dict as one safetensors file, large tensors in float16, atomically."""
    stored = {
        key: value.half() if value.is_floating_point() and value.numel() >= _HALF_FROM else value
        for key, value in state.items()
    }
    with atomic_write(path) as temporary:
        save_file({k: v.contiguous() for k, v in stored.items()}, str(temporary), metadata=metadata)


@dataclass(frozen=True)
class CropAccuracy:
    """Zero-shot top-1 of a teacher on held-out crops.

    Attributes:
        tight: share of right answers at 1x context.
        wide: at 1.5x context.
        mixed: with the context drawn from 1x to 1.5x.
        crops: number of crops of each kind.
        confusions: (right name, answer, count), most frequent first, over the mixed crops.
    """

    tight: float
    wide: float
    mixed: float
    crops: int
    confusions: list[tuple[str, str, int]]


def crop_accuracy(
    teacher: CLIPTeacher,
    categories: Sequence[PictogramCategory],
    *,
    per_category: int = 10,
    seed: int = 0,
    family: str = "vild63",
    workers: int = 2,
    progress: bool = True,
) -> CropAccuracy:
    """Zero-shot classification of crops that no training run has drawn (another seed stream)."""
    names = [category.name for category in categories]
    text = embed_names(names, teacher, family)  # (C, D)
    answers = []
    for kind, context in enumerate(((1.0, 1.0), (1.5, 1.5), (1.0, 1.5))):
        crops = render_crops(
            categories,
            per_category,
            stream=HELD_OUT_STREAM,
            seed=3 * seed + kind,
            context=context,
            workers=workers,
            progress=progress,
        )
        answers.append(_classify(teacher, text, [crop for group in crops for crop in group]))
    truth = torch.arange(len(names)).repeat_interleave(per_category)
    tight, wide, mixed = (float((answer == truth).float().mean()) for answer in answers)
    return CropAccuracy(tight, wide, mixed, len(truth), _confusions(names, truth, answers[2]))


def _classify(teacher: CLIPTeacher, text: torch.Tensor, crops: Sequence[Crop]) -> torch.Tensor:
    """(N,) int64: the nearest name of each crop."""
    answers = []
    for start in range(0, len(crops), 256):
        images = [Image.fromarray(crop.pixels) for crop in crops[start : start + 256]]
        embeddings = teacher.encode_images(teacher.preprocessing.prepare(images)).cpu()
        answers.append((embeddings @ text.T).argmax(dim=1))
    return torch.cat(answers)


def _confusions(
    names: Sequence[str], truth: torch.Tensor, answers: torch.Tensor
) -> list[tuple[str, str, int]]:
    wrong = torch.stack([truth, answers], dim=1)[truth != answers]
    pairs, counts = torch.unique(wrong, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [(names[pairs[i][0]], names[pairs[i][1]], int(counts[i])) for i in order.tolist()]
