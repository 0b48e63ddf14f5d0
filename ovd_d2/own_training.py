"""From a data set of one's own to a detector of its words: the commands, one after another.

Every command reads a config that is written here once, so that nothing has to be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ovd_d2.data.annotation_files import read_annotations
from ovd_d2.data.categories import get_categories
from ovd_d2.data.own import CONFIG_KEY, register_configured
from ovd_d2.engine.config_keys import unknown_key_problems
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write
from ovd_d2.pipeline.pipeline import repository_root
from ovd_d2.pipeline.step import CONFIG_OPTION, Step
from ovd_d2.vocabulary import Vocabulary

RECIPES = {"cpu": "configs/own/cpu.yaml", "cuda": "configs/own/gpu.yaml"}
TEXT, ENSEMBLE = "vild_text", "vild_ensemble"
_DRAWN = 12  # images of the evaluated set


@dataclass(frozen=True)
class OwnData:
    """The data sets of a yaml file that take part.

    Attributes:
        file: the yaml file, absolute.
        train, test: names of data sets.
    """

    file: Path
    train: str
    test: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that says what is in the images."""
        names = dict.fromkeys([self.train, self.test])
        return (self.file, *(Path(MetadataCatalog.get(name).json_file) for name in names))


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        data: what is trained and evaluated on.
        folder: of everything that comes of it, absolute.
        recipe: a config without data and vocabulary.
        options: `KEY VALUE` pairs that differ from the recipe.
        license: of the weights, for the model card.
    """

    data: OwnData
    folder: Path
    recipe: Path
    options: Sequence[str] = field(default=())
    license: str = "other"

    def config(self, name: str) -> Path:
        return self.folder / "configs" / f"{name}.yaml"

    @property
    def vocabulary(self) -> Path:
        return self.folder / "vocabulary.safetensors"

    def weights(self, name: str) -> Path:
        return self.folder / name / "model_final.pth"


def own_data(file: Path, train: str = "", test: str = "") -> OwnData:
    """Registers a yaml file's data sets and chooses two.

    Args:
        file: see :func:`ovd_d2.data.own.register_own`.
        train, test: their names; by default the ones that end in _train and in _val or _test.

    Raises:
        SetupError: the file has faults; there is no set of that name, or no single one to choose.
    """
    if not file.is_file():
        raise SetupError([f"no file at {file}: tools/import_dataset.py writes one"])
    file = file.expanduser().absolute()
    register_configured(str(file))
    names = [
        name
        for name in DatasetCatalog
        if MetadataCatalog.get(name).get("own_file", "") == str(file)
    ]
    chosen = train or _single(names, ("_train",), "--train", file)
    evaluated = test or _single(names, ("_val", "_test"), "--test", file)
    for option, one in (("--train", chosen), ("--test", evaluated)):
        if one not in names:
            raise SetupError([f"{option} {one}: {file} has {', '.join(names)}"])
    return OwnData(file, chosen, evaluated)


def _single(names: Sequence[str], endings: Sequence[str], option: str, file: Path) -> str:
    for ending in endings:
        found = [name for name in names if name.endswith(ending)]
        if len(found) == 1:
            return found[0]
    expected, known = " or ".join(f"*{ending}" for ending in endings), ", ".join(names)
    raise SetupError([f"{file}: expected one data set called {expected}, found {known}: {option}"])


def write_configs(run: Run) -> None:
    """The configs of the vocabulary and of the two trainings, which need the vocabulary's width.

    Raises:
        SetupError: an option that no config has, or a value of a wrong type.
    """
    if problems := unknown_key_problems(str(run.recipe), list(run.options)):
        raise SetupError(problems)
    data = _data_config(run)
    _write(run.config("data"), data)
    load_config(str(run.config("data")))
    if not run.vocabulary.is_file():
        return
    width = Vocabulary.load(run.vocabulary).embedding_dim
    shared = {"_BASE_": "data.yaml", "MODEL": {"OVD": {"EMBEDDING_DIM": width}}}
    text = {"MODEL": {"VILD": {"VARIANT": TEXT}}, "DATASETS": {"TEST": []}}
    distillation = {"CACHE": str(run.folder / "cache")}
    ensemble = {
        "MODEL": {
            "WEIGHTS": str(run.weights(TEXT)),
            "VILD": {"VARIANT": ENSEMBLE, "DISTILLATION": distillation},
        }
    }
    for name, own in ((TEXT, text), (ENSEMBLE, ensemble)):
        _write(run.config(name), _merged(shared, own, {"OUTPUT_DIR": str(run.folder / name)}))


def _data_config(run: Run) -> dict[str, Any]:
    """The recipe with the user's options, the data set and where its vocabulary will be."""
    annotations = _annotations(run.data)
    masks = bool(annotations) and all("segmentation" in one for one in annotations)
    rle = any(isinstance(one.get("segmentation"), dict) for one in annotations)
    config: dict[str, Any] = {"MODEL": {"MASK_ON": masks}}
    if rle:
        config["INPUT"] = {"MASK_FORMAT": "bitmask"}
    for key, value in zip(run.options[::2], run.options[1::2], strict=True):
        config = _merged(config, _nested(key, CfgNode._decode_cfg_value(value)))
    categories = get_categories(run.data.train)
    node, key = CONFIG_KEY.split(".")
    fixed = {
        "_BASE_": str(run.recipe),
        "MODEL": {
            "ROI_HEADS": {"NUM_CLASSES": len(categories.names)},
            "OVD": {"VOCABULARY": str(run.vocabulary)},
        },
        node: {key: str(run.data.file), "TRAIN": [run.data.train], "TEST": [run.data.test]},
    }
    return _merged(config, fixed)


def _annotations(data: OwnData) -> list[dict[str, Any]]:
    try:
        return [
            one
            for file in data.files[1:]
            for one in read_annotations(file, progress=False)["annotations"]
        ]
    except (FileNotFoundError, ValueError) as error:
        raise SetupError([str(error)]) from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: list(value) if isinstance(value, tuple) else value}
    return dict(value)


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The later ones count."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
            whole[key] = _merged(whole[key], value) if both else value
    return whole


def _write(file: Path, config: Mapping[str, Any]) -> None:
    with atomic_write(file) as temporary:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def vocabulary_step(run: Run) -> Step:
    """Needs the first config alone, and comes before the others can be written."""
    return Step(
        "vocabulary",
        "Write the category names as text embeddings",
        "tools/build_vocabulary.py",
        (CONFIG_OPTION, str(run.config("data"))),
        run.vocabulary,
        inputs=run.data.files,
    )


def training_steps(run: Run) -> list[Step]:
    """From the checks to the images, once the vocabulary is there."""
    inputs = (*run.data.files, run.vocabulary)
    check = Step(
        "check",
        "Look at everything that the trainings need",
        "tools/check_setup.py",
        (CONFIG_OPTION, str(run.config(TEXT))),
        run.vocabulary,
        inputs=inputs,
    )
    text = _train_step(run, TEXT, "Train the first stage on base boxes", ("check",), None)
    ensemble = _train_step(
        run, ENSEMBLE, "Train ViLD-ensemble and evaluate it", ("cache",), "inference/results.json"
    )
    return [check, text, *_cache_steps(run), ensemble, *_look_steps(run)]


def _train_step(
    run: Run, name: str, purpose: str, needs: tuple[str, ...], product: str | None
) -> Step:
    folder = run.folder / name
    return Step(
        name,
        purpose,
        "tools/train_net.py",
        (CONFIG_OPTION, str(run.config(name)), "--resume"),
        folder / product if product else run.weights(name),
        needs,
        folder,
    )


def _cache_steps(run: Run) -> list[Step]:
    proposals, cache = run.folder / "proposals", run.folder / "cache"
    config = run.config(ENSEMBLE)  # its MODEL.WEIGHTS are the first stage's
    count = load_config(str(config)).MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE
    options = ("--output", str(proposals), "--top-k", str(count))
    return [
        Step(
            "proposals",
            "Propose boxes: anything that looks like an object, named or not",
            "tools/extract_proposals.py",
            (CONFIG_OPTION, str(config), *options),
            proposals / "manifest.json",
            (TEXT,),
            proposals,
        ),
        Step(
            "cache",
            "Let the teacher look at every proposal, once, and keep what it sees",
            "tools/cache.py",
            (
                *("build", CONFIG_OPTION, str(config)),
                *("--proposals", str(proposals), "--output", str(cache)),
            ),
            cache / "manifest.json",
            ("proposals",),
            cache,
        ),
    ]


def _look_steps(run: Run) -> list[Step]:
    model, images = run.folder / "model", run.folder / "images"
    return [
        Step(
            "model",
            "Put the detector into a folder of its own",
            "tools/export_model.py",
            (
                *("--training", str(run.folder / ENSEMBLE), "--license", run.license),
                *("--output", str(model)),
            ),
            model / "config.yaml",
            (ENSEMBLE,),
            model,
        ),
        Step(
            "images",
            "Look for the names in images that were not trained on",
            "tools/predict.py",
            (
                *("--model", str(model), "--output", str(images)),
                *("--input", *map(str, _shown_images(run.data.test))),
            ),
            images / "detections.json",
            ("model",),
            images,
        ),
    ]


def _shown_images(dataset: str) -> list[Path]:
    """The first ones; a drawing is called as its image, so each name once."""
    files = [Path(one["file_name"]) for one in DatasetCatalog.get(dataset)]
    return list({file.stem: file for file in reversed(files)}.values())[::-1][:_DRAWN]


def results_table(run: Run) -> str:
    """Average precision of all, base and novel categories."""
    results = json.loads((run.folder / ENSEMBLE / "inference/results.json").read_text())
    columns = ("AP", "AP50", "AP50_base", "AP50_novel")
    rows = [
        [{"bbox": "box", "segm": "mask"}[task], *(metrics.get(key) for key in columns)]
        for task, metrics in results.items()
        if task in ("bbox", "segm")
    ]
    return tabulate(rows, [run.data.test, *columns], floatfmt=".1f", missingval="-")


def recipe_file(text: str, device: str) -> Path:
    """The config that is named, or the recipe of a device.

    Raises:
        SetupError: no such file.
    """
    file = Path(text).absolute() if text else repository_root() / RECIPES[device]
    if not file.is_file():
        raise SetupError([f"--recipe {text}: no such file; leave it out for {RECIPES[device]}"])
    return file
