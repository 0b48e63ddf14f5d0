"""tools/cache.py on the mini Pictograms: every command, as a user types it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.cache import (
    DatasetInfo,
    EmbeddingCache,
    Manifest,
    RecordWriter,
    dataset_fingerprint,
)
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.passengers import transform_cached_proposals
from ovd_d2.engine.run import load_config, train
from ovd_d2.vocabulary import Vocabulary
from tests.integration.conftest import TRAIN, VAL, MiniPictograms

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "cache.py"
TEACHER = ("--architecture", "Pictogram-RN", "--pretrained", "shipped")
SMALL_SHARDS = ("--images-per-shard", "5")  # six of them
COMMANDS = ("build", "info", "verify", "merge", "convert", "sample", "add-image-list")
Tool = Callable[..., str]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    """`tool("info", path)` runs the command in this process and returns what it prints."""
    main = runpy.run_path(str(TOOL))["main"]

    def run(*arguments: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(tool: Tool) -> Tool:
    """As `tool`, for a command that must end with a message, which it returns."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            tool(*arguments)
        assert isinstance(caught.value.code, str)  # Python prints it and exits with status 1
        return caught.value.code

    return run


@pytest.fixture(scope="module")
def proposals(mini: MiniPictograms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The boxes of four objects per image, the larger the more objectness."""
    path, records = tmp_path_factory.mktemp("proposals"), DatasetCatalog.get(TRAIN)
    info = DatasetInfo(TRAIN, dataset_fingerprint(records), len(records))
    manifest = Manifest(kind="proposals", dataset=info, proposals="boxes")
    with RecordWriter(path, manifest, images=records) as writer:
        for record in records:
            objects = record["annotations"][:4]
            boxes = torch.tensor([one["bbox"] for one in objects]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            writer.add(record["image_id"], {"boxes": boxes, "objectness": areas / 1e6})
        writer.finish()
    return path


@pytest.fixture(scope="module")
def cache(mini: MiniPictograms, proposals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache")
    runpy.run_path(str(TOOL))["main"](list(build_arguments(proposals, path)))
    return path


def build_arguments(proposals: Path, path: Path, *options: str) -> tuple[str, ...]:
    source = ("--dataset", TRAIN, "--proposals", str(proposals))
    return ("build", *source, *TEACHER, "--output", str(path), *options)


def test_an_older_cache_gets_the_list_of_its_images(
    cache: Path, tmp_path: Path, tool: Callable[..., str], refused: Callable[..., str]
) -> None:
    older = tmp_path / "older"
    shutil.copytree(cache, older, ignore=shutil.ignore_patterns("images.json"))
    assert "these " in refused("add-image-list", older, "--dataset", VAL)
    assert tool("add-image-list", older, "--dataset", TRAIN).startswith(str(older / "images.json"))
    assert (older / "images.json").read_bytes() == (cache / "images.json").read_bytes()


def test_the_config_names_teacher_and_data_set(
    cache: Path, proposals: Path, tmp_path: Path, tool: Tool
) -> None:
    base = Path(__file__).parents[2] / "configs" / "pictograms" / "vild.yaml"
    config = tmp_path / "mini.yaml"
    config.write_text(f"_BASE_: {base}\nDATASETS: {{TRAIN: [{TRAIN}]}}\n")
    tool("build", "--config-file", config, "--proposals", proposals, "--output", tmp_path / "new")
    assert facts(tool("info", tmp_path / "new"))["teacher"] == facts(tool("info", cache))["teacher"]
    assert facts(tool("info", tmp_path / "new"))["state"] == "complete"


def facts(printed: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in printed.splitlines())  # type: ignore[misc]


def test_info_says_what_the_cache_is(cache: Path, tool: Tool) -> None:
    table = facts(tool("info", cache))
    assert table["state"] == "complete"
    assert table["images"] == "30 in 1 shards"
    assert table["teacher"].startswith("Pictogram-RN-")
    assert table["holds"].endswith("64 x float16 each")
    found = json.loads(tool("info", "--json", cache))
    assert found["images"] == found["dataset_images"] == 30
    assert found["teacher"] == table["teacher"]


def test_verify_finds_a_sound_cache_sound_and_one_flipped_byte(
    cache: Path, tmp_path: Path, tool: Tool, refused: Tool
) -> None:
    assert "is sound: 30 images" in tool("verify", cache)
    path = copy(cache, tmp_path / "copy")
    (shard,) = path.glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    message = refused("verify", path)
    assert str(shard) in message
    assert "1 of 30 records do not fit their checksums" in message
    assert "tools/cache.py build again" in message


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_build_stores_the_type_and_the_number_it_is_asked_for(
    cache: Path, proposals: Path, tmp_path: Path, tool: Tool
) -> None:
    tool(*build_arguments(proposals, tmp_path / "other", "--dtype", "int8", "--top-k", "2"))
    other, usual = EmbeddingCache(tmp_path / "other"), EmbeddingCache(cache)
    assert other.manifest.dtype == "int8"
    for image_id in other:
        mine, theirs = other[image_id], usual.read(image_id, 2)
        assert torch.equal(mine.boxes, theirs.boxes)
        assert ((mine.embeddings * theirs.embeddings).sum(1) > 0.999).all()


def test_parts_are_merged_into_the_cache_that_one_machine_builds(
    cache: Path, proposals: Path, tmp_path: Path, tool: Tool
) -> None:
    for number in (1, 2):
        part = tmp_path / f"part{number}"
        printed = tool(*build_arguments(proposals, part, "--part", f"{number}/2", *SMALL_SHARDS))
        assert facts(printed)["part"].startswith(f"{number} of 2: join all with tools/cache.py me")
    state = facts(tool("info", tmp_path / "part1"))["state"]
    assert state == "unfinished: 15 of 30 images (50.0%)"
    parts = [tmp_path / "part1", tmp_path / "part2"]
    printed = tool("merge", *parts, "--output", tmp_path / "merged")
    assert facts(printed)["images"] == "30 (30 in this run)"
    merged, usual = EmbeddingCache(tmp_path / "merged"), EmbeddingCache(cache)
    assert merged.manifest.header() == usual.manifest.header()
    for image_id in usual:
        assert torch.equal(merged[image_id].boxes, usual[image_id].boxes)
        # The teacher computes in other batches, which moves the last bits before rounding.
        cosine = (merged[image_id].embeddings * usual[image_id].embeddings).sum(1)
        assert (cosine > 0.9999).all()


def test_parts_that_are_missing_are_asked_for(
    proposals: Path, tmp_path: Path, tool: Tool, refused: Tool
) -> None:
    for number in (1, 2):
        options = ("--part", f"{number}/3", *SMALL_SHARDS)
        tool(*build_arguments(proposals, tmp_path / str(number), *options))
    message = refused("merge", tmp_path / "1", tmp_path / "2", "--output", tmp_path / "merged")
    assert "10 of 30 images are in no source" in message
    assert not (tmp_path / "merged").exists()


@pytest.fixture
def detpro(cache: Path, tmp_path: Path) -> tuple[str, ...]:
    """The cache as DetPro would have stored it; returns the arguments that import it."""
    store = EmbeddingCache(cache)
    images = json.loads(Path(MetadataCatalog.get(TRAIN).json_file).read_text())["images"]
    records = [store[image["id"]] for image in images]
    arrays = [torch.cat([one.boxes, one.objectness[:, None]], 1).numpy() for one in records]
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    with zipfile.ZipFile(tmp_path / "embeddings.zip", "w") as archive:
        for image, record in zip(images, records, strict=True):
            stream = io.BytesIO()
            torch.save(record.embeddings, stream)
            stem = Path(image["coco_url"]).stem
            archive.writestr(f"data/lvis_clip_image_embedding/train/{stem}.pth", stream.getvalue())
    return (
        *("--layout", "detpro", "--embeddings", str(tmp_path / "embeddings.zip")),
        *("--proposals", str(tmp_path / "proposals.pkl"), "--dataset", TRAIN),
    )


def test_convert_takes_over_what_detpro_stored(
    mini: MiniPictograms, cache: Path, detpro: tuple[str, ...], tmp_path: Path, tool: Tool
) -> None:
    options = ("--vocabulary", mini.vocabulary, "--output", tmp_path / "converted")
    table = facts(tool("convert", *detpro, *options))
    assert table["images"] == "30 (30 in this run)"
    assert table["rows normalised"].startswith("0 of ")
    converted, usual = EmbeddingCache(tmp_path / "converted"), EmbeddingCache(cache)
    assert converted.manifest.teacher == usual.manifest.teacher
    for image_id in usual:
        mine, theirs = converted[image_id], usual[image_id]
        assert torch.equal(mine.boxes, theirs.boxes)
        assert torch.equal(mine.objectness, theirs.objectness)
        torch.testing.assert_close(mine.embeddings, theirs.embeddings, atol=1e-3, rtol=0)
    assert "is sound" in tool("verify", tmp_path / "converted")


def test_sample_shows_objects_with_their_names(
    mini: MiniPictograms, cache: Path, tmp_path: Path, tool: Tool
) -> None:
    options = ("--vocabulary", mini.vocabulary, "--images", 8)
    vocabulary = Vocabulary.load(mini.vocabulary)
    words = tool("sample", cache, *options)
    classes = {
        (record["image_id"], tuple(round(x) for x in one["bbox"][:2])): one["category_id"]
        for record in DatasetCatalog.get(TRAIN)
        for one in record["annotations"]
    }
    right = 0
    lines = [line for line in words.splitlines()[2:] if " of " in line]
    for line in lines:
        image_id, _, _, box, names = re.split(r"  +", line.strip())
        place = tuple(int(x) for x in box.split(", ")[:2])
        right += names.startswith(vocabulary.names[classes[int(image_id), place]])
    assert len(lines) >= 16
    assert right / len(lines) > 0.5  # of 80 names: the shipped teacher knows these objects
    printed = tool("sample", cache, *options, "--output", tmp_path / "sheet.png")
    assert printed.strip() == str(tmp_path / "sheet.png")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "{tmp}/nothing"), "no record store in"),
        (("verify", "{tmp}/nothing"), "no record store in"),
        (("merge", "{cache}", "--output", "{tmp}/x"), "at least two stores"),
        (("sample", "{cache}", "--ids", "987654"), "no record of the images [987654]"),
        (("sample", "{cache}", "--vocabulary", "{tmp}/x"), "vocabulary not found"),
        (
            ("build", "--dataset", "nobody", "--proposals", "{proposals}", *TEACHER)
            + ("--output", "{tmp}/x"),
            "no data set 'nobody' is registered",
        ),
        (
            ("build", "--dataset", TRAIN, "--proposals", "{proposals}", "--output", "{tmp}/x"),
            "give --config-file, or --dataset, --architecture and --pretrained",
        ),
        (
            ("build", "--config-file", "x.yaml", "--proposals", "{proposals}", *TEACHER)
            + ("--output", "{tmp}/x"),
            "--config-file names the teacher",
        ),
        (
            ("build", "--dataset", TRAIN, "--proposals", "{proposals}", "--architecture", "RN-0")
            + ("--pretrained", "x", "--output", "{tmp}/x"),
            "RN-0",
        ),
        (
            ("convert", "--layout", "detpro", "--embeddings", "{tmp}/x.zip", "--dataset", TRAIN)
            + ("--vocabulary", "{vocabulary}", "--output", "{tmp}/x"),
            "needs --proposals",
        ),
        (
            ("convert", "--layout", "object-centric-ovd", "--embeddings", "{tmp}")
            + ("--dataset", TRAIN, "--vocabulary", "{vocabulary}", "--output", "{tmp}/x"),
            "holds no .pkl file",
        ),
    ],
)
def test_mistakes_end_with_one_message(
    mini: MiniPictograms,
    cache: Path,
    proposals: Path,
    tmp_path: Path,
    refused: Tool,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    places = {"tmp": tmp_path, "cache": cache, "proposals": proposals}
    places["vocabulary"] = mini.vocabulary
    assert message in refused(*(one.format(**places) for one in arguments))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_an_impossible_part_is_refused(tool: Tool, capsys: Any, part: str) -> None:
    with pytest.raises(SystemExit):
        tool(*build_arguments(Path("x"), Path("y"), "--part", part))
    assert "expected I/N with 1 <= I <= N" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    tool: Tool, capsys: Any, command: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        tool(command, "--help")
    assert caught.value.code == 0
    assert f"python tools/cache.py {command} " in capsys.readouterr().out


def test_a_script_sees_the_exit_status_and_one_line(cache: Path, tmp_path: Path) -> None:
    path = copy(cache, tmp_path / "copy")
    (path / "index.safetensors").unlink()
    done = subprocess.run(
        [sys.executable, str(TOOL), "verify", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "index.safetensors is missing" in done.stderr
    assert "Traceback" not in done.stderr


# One cache serves several trainings.


@pytest.fixture
def half() -> Iterator[str]:
    """A data set of its own with half of the images."""
    name = f"{TRAIN}_half"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(TRAIN)[::2])
    metadata = MetadataCatalog.get(TRAIN).as_dict()
    MetadataCatalog.get(name).set(**{k: v for k, v in metadata.items() if k != "name"})
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def trained(cache: Path, output: Path, arguments: Any, **options: Any) -> dict[str, float]:
    """The last metrics of two iterations of ViLD on the cache."""
    quick = {
        "DATASETS.TRAIN": (TRAIN,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "MODEL.WEIGHTS": "",
        "MODEL.VILD.DISTILLATION.CACHE": str(cache),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "OUTPUT_DIR": str(output),
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    pairs = [item for pair in quick.items() for item in pair]
    train(load_config(str(ROOT / "configs/pictograms/vild.yaml"), pairs), arguments)
    lines = (output / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_one_cache_serves_another_vocabulary_of_its_teacher(
    mini: MiniPictograms, cache: Path, tmp_path: Path, arguments: Any
) -> None:
    usual = Vocabulary.load(mini.vocabulary)
    teacher = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")
    path = tmp_path / "other.safetensors"
    sentences = [f"a small {name}" for name in usual.names]
    embeddings = teacher.encode_text(sentences)
    Vocabulary(usual.names, embeddings, usual.novel, teacher=usual.teacher).save(path)
    metrics = trained(cache, tmp_path / "out", arguments, MODEL__OVD__VOCABULARY=str(path))
    assert np.isfinite(metrics["loss_distillation"])


def test_one_cache_serves_a_part_of_its_images(
    cache: Path, tmp_path: Path, arguments: Any, half: str
) -> None:
    metrics = trained(cache, tmp_path / "out", arguments, DATASETS__TRAIN=(half,))
    assert np.isfinite(metrics["loss_distillation"])


def test_one_cache_serves_fewer_proposals(
    cache: Path, tmp_path: Path, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_rows, used_rows = [], []

    def counted(stored: Mapping[str, Any], *args: Any) -> Any:
        proposals = transform_cached_proposals(stored, *args)
        stored_rows.append(len(stored["boxes"]))
        used_rows.append(len(proposals))
        return proposals

    monkeypatch.setattr("ovd_d2.data.passengers.transform_cached_proposals", counted)
    options = {"MODEL__VILD__DISTILLATION__PROPOSALS_PER_IMAGE": 2}
    metrics = trained(cache, tmp_path / "out", arguments, **options)
    assert max(stored_rows) > 2
    assert max(used_rows) == 2
    assert np.isfinite(metrics["loss_distillation"])
