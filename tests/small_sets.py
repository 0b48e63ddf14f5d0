"""A COCO-format data set of one's own, four small images large, to be spoilt by tests."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.data.own import register_own

ROOT = Path(__file__).parents[1]
NAMES = ["ant", "bee", "cat"]
BASE = ["ant", "bee"]
COLOURS = [(200, 60, 60), (60, 160, 60), (60, 80, 200)]
SIDE, BOX = 64, 20  # pixels


def small_dataset() -> dict[str, Any]:
    """COCO format: images 1 to 4, three objects in each, one per category, polygons as masks."""
    images = [
        {"id": k, "file_name": f"{k}.png", "width": SIDE, "height": SIDE} for k in range(1, 5)
    ]
    annotations = []
    for image in images:
        for place, (x, y) in enumerate([(5, 4), (37, 6), (15, 36)]):
            number = len(annotations) + 1
            corners = [x, y, x + BOX, y, x + BOX, y + BOX, x, y + BOX]
            annotations.append(
                {
                    "id": number,
                    "image_id": image["id"],
                    "category_id": 1 + (place + image["id"]) % 3,
                    "bbox": [x, y, BOX, BOX],
                    "area": BOX * BOX,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def draw_images(folder: Path, dataset: dict[str, Any]) -> None:
    """One PNG per image, with a filled square for each object."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for image in dataset["images"]:
        pixels = noise.integers(200, 240, (image["height"], image["width"], 3), dtype=np.uint8)
        for one in dataset["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = one["bbox"]
                pixels[y : y + h, x : x + w] = COLOURS[one["category_id"] - 1]
        Image.fromarray(pixels).save(folder / image["file_name"])


@dataclass
class Done:
    """How a tool ended: `code` 0, or what it exited with; `text` is all that it printed."""

    code: int
    text: str


@dataclass
class SmallSet:
    """`my_train` and `my_val` in a folder, as `OVD_DATASETS` names them."""

    folder: Path
    train: dict[str, Any] = field(default_factory=small_dataset)
    val: dict[str, Any] = field(default_factory=small_dataset)
    base: list[Any] = field(default_factory=lambda: list(BASE))
    images: str = "images"

    def __post_init__(self) -> None:
        draw_images(self.folder / self.images, small_dataset())

    @property
    def vocabulary(self) -> Path:
        return self.folder / "vocabulary.safetensors"

    @property
    def weights(self) -> Path:
        return self.folder / "trained" / "model_final.pth"

    def write(self) -> Path:
        """The two JSONs; returns the path of the yaml file that names them."""
        for name, dataset in (("train", self.train), ("val", self.val)):
            (self.folder / f"{name}.json").write_text(json.dumps(dataset))
        entry = {"image_root": self.images, "base": self.base}
        entries = {f"my_{k}": {"json_file": f"{k}.json", **entry} for k in ("train", "val")}
        path = self.folder / "my_data.yaml"
        path.write_text(json.dumps(entries))  # JSON is yaml
        return path

    @contextlib.contextmanager
    def registered(self) -> Iterator[None]:
        names = register_own(self.write())
        try:
            yield
        finally:
            for name in names:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)

    def arguments(self, *opts: Any, config: str = "vild_text") -> list[str]:
        """Of tools/train_net.py and tools/check_setup.py: two iterations on the CPU."""
        fixed: dict[str, Any] = {
            "DATASETS.TRAIN": "('my_train',)",
            "DATASETS.TEST": "('my_val',)",
            "MODEL.ROI_HEADS.NUM_CLASSES": 3,
            "MODEL.OVD.VOCABULARY": self.vocabulary,
            "MODEL.WEIGHTS": "",
            "SEED": 1,  # the same weights in every run
            "SOLVER.MAX_ITER": 2,
            "SOLVER.STEPS": "()",
            "SOLVER.IMS_PER_BATCH": 2,
            "DATALOADER.NUM_WORKERS": 0,
            "TEST.OVD.FAILURES": 0,
            "OUTPUT_DIR": self.folder / "trained",
        }
        pairs = [str(word) for pair in fixed.items() for word in pair]
        return ["--config-file", f"configs/pictograms/{config}.yaml", *pairs, *map(str, opts)]

    def run(self, tool: str, *arguments: Any) -> Done:
        """Runs a tool in this process, with the two sets registered."""
        with self.registered():
            return run_tool(tool, *arguments)

    def check(self, *opts: Any, flags: tuple[str, ...] = (), config: str = "vild_text") -> Done:
        """tools/check_setup.py."""
        words = self.arguments(*opts, config=config)
        return self.run("check_setup.py", *words[:2], *flags, *words[2:])

    def fit(self, *opts: Any, flags: tuple[str, ...] = (), config: str = "vild_text") -> Done:
        """tools/train_net.py."""
        words = self.arguments(*opts, config=config)
        return self.run("train_net.py", *words[:2], *flags, *words[2:])


def run_tool(tool: str, *arguments: Any) -> Done:
    """`python tools/<tool> <arguments>` in this process; an unexpected error is raised."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [tool, *map(str, arguments)])
        patch.chdir(ROOT)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
            except SystemExit as stop:
                message = "" if stop.code is None or isinstance(stop.code, int) else stop.code
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                return Done(code, f"{printed.getvalue()}{message}")
    return Done(0, printed.getvalue())
