"""The Pictogram CLIP: its batches, its training loop on a toy scale, and the shipped weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ovd_d2.clip import CLIPTeacher, embed_names, render_prompts
from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.shipped import MODULES
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.pictograms import teacher_training
from ovd_d2.pictograms.dataset.colours import COLOURS
from ovd_d2.pictograms.dataset.glyphs import GLYPHS, build_categories
from ovd_d2.pictograms.dataset.plan import choose_frequencies
from ovd_d2.pictograms.teacher import (
    ARCHITECTURE,
    SHIPPED_BASE_TAG,
    SHIPPED_TAG,
    SHIPPED_WEIGHTS,
    VIT_ARCHITECTURE,
)
from ovd_d2.pictograms.teacher_data import (
    BACKGROUND_CAPTIONS,
    FRAGMENT_CAPTIONS,
    HELD_OUT_STREAM,
    TRAIN_STREAM,
    CaptionedBatches,
    Crop,
    render_crops,
)
from ovd_d2.pictograms.teacher_training import (
    RECIPES,
    TrainingSettings,
    categories_of,
    crop_accuracy,
    save_weights,
    train,
)
from tests.programs import run_program

TOY = TrainingSettings(
    categories=4, crops_per_category=2, steps=4, batch_size=4, warmup_steps=1, seed=3
)
TOYS = [TOY, replace(TOY, architecture=VIT_ARCHITECTURE, lock_text=True, teach_patches=True)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal runs give equal weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module", params=[one for one, files in SHIPPED_WEIGHTS.items() if SHIPPED_TAG in files]
)
def shipped(request: pytest.FixtureRequest) -> CLIPTeacher:
    return CLIPTeacher.from_open_clip(request.param, SHIPPED_TAG)


def draw(
    count: int, stream: int = TRAIN_STREAM, seed: int = 0, workers: int = 1
) -> list[list[Crop]]:
    categories = build_categories(count)
    return render_crops(categories, 3, stream=stream, seed=seed, workers=workers, progress=False)


def same(first: list[list[Crop]], second: list[list[Crop]]) -> bool:
    pairs = zip(sum(first, []), sum(second, []), strict=True)
    return all(np.array_equal(a.pixels, b.pixels) and a.colour == b.colour for a, b in pairs)


def test_crops_depend_on_seed_and_stream_only() -> None:
    crops = draw(3)
    assert same(crops, draw(3, workers=2))
    assert not same(crops, draw(3, seed=1))
    assert not same(crops, draw(3, stream=HELD_OUT_STREAM))


def test_batches_hold_no_false_negatives() -> None:
    categories = build_categories(12)
    batches = CaptionedBatches(categories, draw(12), seed=0, coloured_share=0.5)
    names = [f"{colour} {category.name}" for colour in COLOURS for category in categories]
    kinds = set()
    for step in range(12):
        images, captions = batches.batch(step)
        assert len(images) == len(captions) == len(set(captions))
        assert captions[-2] in BACKGROUND_CAPTIONS
        assert captions[-1] in FRAGMENT_CAPTIONS
        coloured = [any(name in text for name in names) for text in captions[:-2]]
        assert all(coloured) or not any(coloured)  # "an anchor" never meets "a red anchor"
        kinds.add(coloured[0])
        if not coloured[0]:
            assert len(captions) == 12 + 2
    assert kinds == {True, False}


def test_batches_are_repeatable_and_bounded() -> None:
    categories, bank = build_categories(12), draw(12)
    batches = CaptionedBatches(categories, bank, seed=0, batch_size=5, coloured_share=0)
    first, again = batches.batch(7), batches.batch(7)
    assert first[1] == again[1]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first[0], again[0], strict=True))
    assert len(first[0]) == 5 + 2
    assert batches.batch(8)[1] != first[1]


def test_colour_categories_are_named_as_they_are() -> None:
    categories = build_categories(len(GLYPHS) + 1)[:6]
    bank = render_crops(categories, 1, stream=TRAIN_STREAM, seed=0, workers=1, progress=False)
    _, captions = CaptionedBatches(categories, bank, seed=0, coloured_share=1).batch(0)
    for category in categories:
        assert sum(category.name in caption for caption in captions) == 1


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.architecture)
def test_killed_training_resumes_exactly(toy: TrainingSettings, tmp_path: Path) -> None:
    whole = train(toy, tmp_path / "whole.pt", workers=1)

    original = teacher_training._Run._train_step
    count = 0

    def dies(run: teacher_training._Run) -> tuple[float, float]:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return original(run)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher_training._Run, "_train_step", dies)
        train(toy, tmp_path / "cut.pt", workers=1, save_every_s=-1)
    resumed = train(toy, tmp_path / "cut.pt", workers=1)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=0)


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    train(replace(TOY, steps=1), tmp_path / "c.pt", workers=1)
    with pytest.raises(ValueError, match=r"c\.pt was made with other settings \(seed\)"):
        train(replace(TOY, steps=1, seed=4), tmp_path / "c.pt", workers=1)


@pytest.mark.parametrize(("base_only", "tag"), [(False, SHIPPED_TAG), (True, SHIPPED_BASE_TAG)])
def test_locked_text_is_that_of_the_first_teacher(
    base_only: bool, tag: str, tmp_path: Path
) -> None:
    """A base-only teacher learns no novel name by way of another teacher's text tower either."""
    toy = replace(TOYS[1], base_only=base_only)
    before = train(replace(toy, steps=0), tmp_path / "before.pt", workers=1)
    after = train(replace(toy, steps=2), tmp_path / "after.pt", workers=1)
    first = CLIPTeacher.from_open_clip(ARCHITECTURE, tag).state_dict()
    for key, value in after.items():
        if key == "visual.trunk.pos_embed":  # rotations are its only positions
            assert not value.any()
        elif key.startswith("visual."):
            assert not torch.equal(value, before[key]), key
        else:
            torch.testing.assert_close(value, first[key], rtol=0, atol=0)


@pytest.mark.parametrize("architecture", SHIPPED_WEIGHTS)
def test_saved_weights_are_half_and_carry_metadata(architecture: str, tmp_path: Path) -> None:
    state = open_clip.create_model(architecture, load_weights=False).state_dict()
    save_weights(state, tmp_path / "w.safetensors", {"seed": "3"})
    with safe_open(str(tmp_path / "w.safetensors"), framework="pt") as handle:
        assert handle.metadata() == {"seed": "3"}
        assert handle.get_tensor("token_embedding.weight").dtype == torch.float16
        assert handle.get_tensor("logit_scale").dtype == torch.float32
    teacher = CLIPTeacher.from_open_clip(architecture, str(tmp_path / "w.safetensors"))
    assert teacher.image_size == (48, 48)


WIDE = {ARCHITECTURE: 0.95, VIT_ARCHITECTURE: 0.91}  # top-1 of crops with the most around them
SHIPPED = [(name, tag) for name, files in SHIPPED_WEIGHTS.items() for tag in files]


@pytest.mark.parametrize(("architecture", "tag"), SHIPPED)
def test_shipped_files_are_small_and_say_how_they_were_made(architecture: str, tag: str) -> None:
    path, base_only = SHIPPED_WEIGHTS[architecture][tag], tag == SHIPPED_BASE_TAG
    assert path.stat().st_size <= 6_000_000
    with safe_open(str(path), framework="pt") as handle:
        metadata = handle.metadata()
    assert metadata["architecture"] == architecture
    assert "train_pictogram_clip.py" in metadata["command"]
    settings = json.loads(metadata["settings"])
    assert settings.get("base_only", False) is base_only
    if not base_only:
        assert settings.items() <= asdict(RECIPES[architecture]).items()
        assert min(float(metadata[f"top1_{view}"]) for view in ("1x", "mixed")) >= 0.95
        assert float(metadata["top1_1.5x"]) >= WIDE[architecture]


@pytest.mark.parametrize("architecture", SHIPPED_WEIGHTS)
def test_command_trains_by_the_recipe_where_no_option_says_otherwise(
    architecture: str, tmp_path: Path
) -> None:
    output = tmp_path / "w.safetensors"
    files = ("--architecture", architecture, "--output", output)
    small = ("--categories", 3, "--crops", 1, "--steps", 1, "--test-crops", 1, "--seed", 5)
    done = run_program("tools/train_pictogram_clip.py", *files, *small, "--workers", 1)
    assert done.status == 0, done.stderr
    with safe_open(str(output), framework="pt") as handle:
        metadata = handle.metadata()
    expected = replace(RECIPES[architecture], categories=3, crops_per_category=1, steps=1, seed=5)
    assert json.loads(metadata["settings"]) == asdict(expected)
    assert CLIPTeacher.from_open_clip(architecture, str(output)).fingerprint in done.stdout


def test_base_only_leaves_out_what_the_data_set_holds_rare() -> None:
    everything = build_categories(80)
    base = categories_of(TrainingSettings(base_only=True))
    rare = {
        category.name
        for category, letter in zip(everything, choose_frequencies(everything, 0), strict=True)
        if letter == "r"
    }
    assert len(rare) == 16 and len(base) == 64
    assert not rare & {category.name for category in base}
    assert categories_of(TrainingSettings()) == everything


def test_shipped_initial_weights_know_base_glyphs_and_no_novel_ones() -> None:
    clip = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_BASE_TAG)
    base = categories_of(TrainingSettings(base_only=True))
    novel = [category for category in build_categories(80) if category not in base]
    found = [
        crop_accuracy(clip, group, per_category=4, seed=99, workers=1, progress=False).mixed
        for group in (base, novel)
    ]
    assert found[0] >= 0.9
    assert found[1] <= 0.4  # chance among 16 names: 0.06


def test_shipped_teacher_knows_the_names(shipped: CLIPTeacher) -> None:
    result = crop_accuracy(
        shipped, build_categories(80), per_category=2, seed=99, workers=1, progress=False
    )
    assert result.crops == 160  # of each kind
    # Three standard errors of so few crops below what the files say of many.
    assert min(result.tight, result.mixed) >= 0.91
    assert result.wide >= 0.85
    wrong = sum(count for _, _, count in result.confusions)
    assert result.mixed == pytest.approx(1 - wrong / 160)


def test_every_shipped_architecture_is_known_by_name() -> None:
    module = "ovd_d2.pictograms.teacher"
    assert {name for name, home in MODULES.items() if home == module} == set(SHIPPED_WEIGHTS)


def test_the_vit_has_a_dense_map_of_stride_8() -> None:
    vit = DenseViT(untrained_model(VIT_ARCHITECTURE).visual)
    assert (vit.patch_size, vit.width, vit.depth) == (8, 128, 6)
    assert vit(torch.zeros(1, 3, 120, 160)).shape == (1, 64, 15, 20)


@pytest.mark.parametrize("architecture", SHIPPED_WEIGHTS)
def test_shipped_teacher_reads_every_prompt_whole(architecture: str) -> None:
    tokenizer = open_clip.get_tokenizer(architecture)
    names = sorted((category.name for category in build_categories(400)), key=len)
    prompts = [prompt for name in names[-20:] for prompt in render_prompts(name)]
    tokens = tokenizer(prompts, context_length=77)
    assert int((tokens != 0).sum(dim=1).max()) <= tokenizer.context_length


def test_shipped_teacher_knows_colours(shipped: CLIPTeacher) -> None:
    """A text query may name the ink: "red anchor" is nearer to red anchors than "blue anchor"."""
    text = embed_names(["red anchor", "blue anchor"], shipped)
    crops = render_crops(
        build_categories(1), 60, stream=HELD_OUT_STREAM, seed=5, workers=1, progress=False
    )[0]
    for answer, colour in enumerate(("red", "blue")):
        images = [Image.fromarray(crop.pixels) for crop in crops if crop.colour == colour]
        assert images
        embeddings = shipped.encode_images(shipped.preprocessing.prepare(images))
        assert ((embeddings @ text.T).argmax(dim=1) == answer).float().mean() >= 0.75
