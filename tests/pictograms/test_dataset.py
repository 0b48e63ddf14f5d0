"""Glyphs, rendering, frequency plan, captions and polygons of the Pictograms data set."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovd_d2.pictograms.dataset import plan
from ovd_d2.pictograms.dataset.annotations import mask_to_box, mask_to_polygons
from ovd_d2.pictograms.dataset.captions import caption_of, plural
from ovd_d2.pictograms.dataset.colours import COLOURS, sample_ink
from ovd_d2.pictograms.dataset.glyphs import GLYPHS, build_categories, max_categories
from ovd_d2.pictograms.dataset.render import (
    glyph_mask,
    object_layers,
    paste_glyph,
    random_crop_sample,
    sample_appearance,
)
from ovd_d2.pictograms.dataset.scenes import MIN_VISIBLE, draw_crowd, draw_scene
from ovd_d2.pictograms.dataset.textures import TEXTURES, textured_background


def _similarity(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of two alpha masks stretched to one size: 1 for equal shapes."""
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


def test_glyphs_are_distinct_in_name_code_point_and_shape():
    assert len(GLYPHS) >= 80
    assert len({glyph.name for glyph in GLYPHS}) == len(GLYPHS)
    assert len({glyph.codepoint for glyph in GLYPHS}) == len(GLYPHS)
    centred = []
    for glyph in GLYPHS:
        mask = glyph_mask(glyph, 48)
        canvas = np.zeros((48, 48))
        top, left = (48 - mask.shape[0]) // 2, (48 - mask.shape[1]) // 2
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        centred.append(canvas)
    for i, first in enumerate(centred):
        for second in centred[:i]:
            # The missing-character box or a white/black pair would come near 1.
            assert _similarity(first, second) < 0.9


def test_categories_are_glyphs_first_and_colour_glyph_pairs_beyond():
    plain = build_categories(80)
    assert [category.name for category in plain] == [glyph.name for glyph in GLYPHS[:80]]
    assert all(category.colour is None for category in plain)
    many = build_categories(300)
    assert len({category.name for category in many}) == 300
    assert all(c.name == f"{c.colour} {c.glyph.name}" for c in many)
    assert len({c.glyph for c in many[: len(GLYPHS)]}) == len(GLYPHS)
    assert len({c.name for c in build_categories(max_categories())}) == max_categories()


@pytest.mark.parametrize("count", [0, -3, len(GLYPHS) * len(COLOURS) + 1])
def test_category_count_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match=rf"expected 1\.\.\d+, got {count}"):
        build_categories(count)


@pytest.mark.parametrize("size", [1, 9, 40, 200, 500])
@pytest.mark.parametrize("rotation", [-30.0, 0.0, 17.0])
def test_glyph_mask_is_tight_and_of_the_size_asked_for(size, rotation):
    mask = glyph_mask(GLYPHS[0], size, rotation)
    assert mask.dtype == np.uint8 and mask.ndim == 2
    assert max(mask.shape) == size
    if size >= 9:
        for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
            assert edge.max() > 60


def test_glyph_mask_refuses_no_size():
    with pytest.raises(ValueError, match="got 0"):
        glyph_mask(GLYPHS[0], 0)


def test_rotation_turns_counter_clockwise():
    flag = next(glyph for glyph in GLYPHS if glyph.name == "feathered arrow")
    turned = glyph_mask(flag, 60, 30.0)
    height, width = turned.shape
    right = np.argwhere(turned[:, -width // 8 :] > 128)[:, 0].mean()
    left = np.argwhere(turned[:, : width // 8] > 128)[:, 0].mean()
    assert right < left  # the arrow's head, right, went up


def test_paste_blends_by_alpha_and_clips():
    canvas = np.zeros((4, 4, 3), np.uint8)
    paste_glyph(canvas, np.array([[255, 128], [0, 255]], np.uint8), (200, 100, 50), (3, 3))
    assert canvas[3, 3].tolist() == [200, 100, 50]
    assert canvas.sum() == 350
    paste_glyph(canvas, np.array([[255, 51]], np.uint8), (100, 100, 100), (-1, 0))
    assert canvas[0, 0].tolist() == [20, 20, 20]
    before = canvas.copy()
    paste_glyph(canvas, np.full((2, 2), 255, np.uint8), (9, 9, 9), (7, -5))
    assert np.array_equal(canvas, before)


@pytest.mark.parametrize("backing", ["none", "halo", "sticker"])
def test_layers_keep_the_size_and_the_silhouette_covers_all_that_is_drawn(backing):
    rng = np.random.default_rng(0)
    appearance = sample_appearance(rng, build_categories(80)[0])
    appearance = type(appearance)(**{**vars(appearance), "backing": backing})
    layers = object_layers(GLYPHS[0], 60, appearance)
    assert max(layers.silhouette.shape) == 60
    drawn = np.maximum(layers.ink, layers.backing) >= 128
    assert not (drawn & ~layers.silhouette).any()
    assert (layers.backing.max() > 0) == (backing != "none")
    if backing == "sticker":
        assert (layers.backing[layers.silhouette] == 255).all()


def test_named_colours_stay_apart_under_jitter():
    rng = np.random.default_rng(0)
    centres = np.array(list(COLOURS.values()), float)
    for index, name in enumerate(COLOURS):
        for _ in range(50):
            distances = np.abs(centres - np.array(sample_ink(rng, name))).sum(axis=1)
            assert distances.argmin() == index


def test_textures_vary_and_have_the_shape_asked_for():
    images = [textured_background(np.random.default_rng(k), 20, 30) for k in range(40)]
    assert all(image.shape == (20, 30, 3) and image.dtype == np.uint8 for image in images)
    assert np.std([image.mean() for image in images]) > 15
    for texture in TEXTURES:
        assert texture(np.random.default_rng(1), 16, 24, 160).shape == (16, 24, 3)


def test_random_crop_is_seeded_and_keeps_a_fixed_colour():
    categories = build_categories(300)
    crops = [
        random_crop_sample(np.random.default_rng(5), categories[7], 64, neighbours=categories)
        for _ in range(2)
    ]
    assert np.array_equal(crops[0][0], crops[1][0])
    assert crops[0][0].shape == (64, 64, 3)
    assert crops[0][1] == categories[7].colour
    native, _ = random_crop_sample(np.random.default_rng(5), categories[7], None)
    assert 18 <= max(native.shape[:2]) <= 160


@pytest.mark.parametrize(
    ("images", "thresholds"), [(1000, (10, 100)), (50000, (10, 100)), (500, (5, 50)), (24, (1, 2))]
)
def test_frequency_thresholds(images, thresholds):
    assert plan.frequency_thresholds(images) == thresholds
    rare, common = thresholds
    letters = [plan.frequency_of(n, images) for n in (rare, rare + 1, common, common + 1)]
    assert letters == ["r", "c", "c", "f"]


@pytest.mark.parametrize(
    ("count", "images", "seed"),
    [(80, 1000, 0), (80, 24, 1), (80, 3000, 2), (10, 30, 3), (300, 3000, 4)],
)
def test_train_plan_obeys_the_rule_and_the_limits(count, images, seed):
    categories = build_categories(count)
    frequencies = plan.choose_frequencies(categories, seed)
    split = plan.plan_train(frequencies, images, seed)
    counts = split.image_counts(count)
    assert [plan.frequency_of(int(n), images) for n in counts] == frequencies
    sizes = [len(objects) for objects in split.images]
    assert len(sizes) == images and min(sizes) >= 2 and max(sizes) <= plan.MAX_OBJECTS


@pytest.mark.parametrize(
    ("count", "images", "number"), [(80, 1000, 10), (80, 24, 2), (300, 3000, 30), (10, 30, 2)]
)
def test_images_without_base_objects_come_last(count, images, number):
    frequencies = plan.choose_frequencies(build_categories(count), 0)
    regular = plan.plan_train(frequencies, images, 0)
    split = plan.without_base(regular, frequencies, 0)
    assert split.images[:images] == regular.images
    only_novel, nothing = split.images[images:-number], split.images[-number:]
    assert nothing == ((),) * number
    assert len(only_novel) == len(split.crowds) == number
    assert {frequencies[index] for objects in only_novel for index in objects} == {"r"}
    assert {frequencies[index] for index in split.crowds} == {"f"}
    assert all(len(objects) >= 2 for objects in only_novel)


def test_the_default_set_obeys_the_rule_with_them():
    frequencies = plan.choose_frequencies(build_categories(80), 0)
    split = plan.without_base(plan.plan_train(frequencies, 1000, 0), frequencies, 0)
    counts = split.image_counts(80)
    assert [plan.frequency_of(int(n), 1000) for n in counts] == frequencies
    assert len(split.images) + len(split.crowds) == 1030


def test_frequencies_are_shares_of_the_categories_and_rare_glyphs_differ():
    frequencies = plan.choose_frequencies(build_categories(80), 0)
    assert [frequencies.count(letter) for letter in "rcf"] == [16, 40, 24]
    assert frequencies != plan.choose_frequencies(build_categories(80), 1)
    many = build_categories(300)
    letters = plan.choose_frequencies(many, 0)
    rare = [c.glyph for c, f in zip(many, letters, strict=True) if f == "r"]
    assert len(set(rare)) == len(rare) == 60


def test_val_plan_is_balanced():
    counts = plan.plan_val(80, 250, 0).image_counts(80)
    assert counts.max() - counts.min() <= 1 and counts.min() >= 14


def test_too_few_images_are_refused_with_the_number_that_would_do():
    frequencies = plan.choose_frequencies(build_categories(300), 0)
    with pytest.raises(ValueError, match=r"1000 training images cannot hold 300.*at least 2\d00"):
        plan.plan_train(frequencies, 1000, 0)
    with pytest.raises(ValueError, match="at least 12 to show each of 80 categories, got 5"):
        plan.plan_val(80, 5, 0)
    with pytest.raises(ValueError, match="at least 4, got 3"):
        plan.choose_frequencies(build_categories(3), 0)


@pytest.mark.parametrize("contents", [(), (3,), (0, 1, 2, 3, 4, 5, 6, 7, 7)])
def test_scene_shows_every_object_it_was_asked_for(contents):
    scene = draw_scene(np.random.default_rng(2), contents, build_categories(80), 96)
    assert scene.image.shape == (96, 96, 3)
    assert sorted(item.category for item in scene.objects) == sorted(contents)
    total = np.zeros((96, 96), int)
    for item in scene.objects:
        assert item.mask.sum() > 40
        total += item.mask
    assert total.max(initial=0) <= 1  # every pixel belongs to one object


def test_objects_stay_visible_enough():
    """Each object keeps MIN_VISIBLE of its own silhouette, whatever is drawn above it."""
    categories = build_categories(80)
    bare = {}
    for seed in range(6):
        scene = draw_scene(np.random.default_rng(seed), (2,) * 8, categories, 160)
        for item in scene.objects:
            height, width = (np.ptp(axis) + 1 for axis in np.nonzero(item.mask))
            bare.setdefault(seed, []).append(item.mask.sum() / (height * width))
    # The sun's own silhouette fills 0.35 or more of its box at every rotation.
    assert min(min(shares) for shares in bare.values()) > 0.35 * MIN_VISIBLE


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("side", [64, 160])
def test_a_crowd_is_one_large_region_in_one_colour(seed, side):
    categories = build_categories(300)
    scene = draw_crowd(np.random.default_rng(seed), 7, categories, side)
    assert scene.image.shape == (side, side, 3)
    (crowd,) = scene.objects
    assert crowd.is_crowd and crowd.category == 7
    assert crowd.colour == categories[7].colour
    assert 0.08 < crowd.mask.mean() < 0.95
    parts, _ = cv2.connectedComponents(crowd.mask.astype(np.uint8))
    assert parts == 2  # the region and what is around it
    again = draw_crowd(np.random.default_rng(seed), 7, categories, side)
    assert np.array_equal(again.image, scene.image)


def test_scene_refuses_more_objects_than_the_grid_holds():
    with pytest.raises(ValueError, match="at most 9 objects, got 10"):
        draw_scene(np.random.default_rng(0), (0,) * 10, build_categories(80), 96)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("anchor", "anchors"),
        ("die", "dice"),
        ("maltese cross", "maltese crosses"),
        ("wheel of dharma", "wheels of dharma"),
        ("smiling face with horns", "smiling faces with horns"),
        ("fleur-de-lis", "fleurs-de-lis"),
        ("scissors", "scissors"),
    ],
)
def test_plural(name, expected):
    assert plural(name) == expected


def test_caption_groups_equal_objects_and_spans_point_at_the_words():
    objects = [
        (0, "orange", "anchor"),
        (1, "blue", "umbrella"),
        (4, "red", "scissors"),
        (1, "blue", "umbrella"),
    ]
    caption, phrases = caption_of(objects)
    assert caption == "an orange anchor, two blue umbrellas and red scissors"
    words = [caption[phrase.span[0] : phrase.span[1]] for phrase in phrases]
    assert words == ["orange anchor", "blue umbrellas", "red scissors"]
    assert [phrase.objects for phrase in phrases] == [(0,), (1, 3), (2,)]
    assert [phrase.category for phrase in phrases] == [0, 1, 4]
    many, (crowd, one) = caption_of([objects[1], objects[1]], crowds=[0])
    assert many == "many blue umbrellas and a blue umbrella"
    assert (crowd.objects, one.objects) == ((0,), (1,))
    assert many[slice(*crowd.span)] == "blue umbrellas"
    assert caption_of([]) == ("nothing but clutter", [])


def _rasterised(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))
    return coco_mask.decode(encoded).astype(bool)


def _ring() -> np.ndarray:
    mask = np.zeros((20, 24), bool)
    mask[2:18, 3:21] = True
    mask[6:9, 8:12] = False
    mask[12:14, 5:7] = False
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((5, 7), bool),
        np.eye(6, dtype=bool)[:, ::-1] | np.eye(6, dtype=bool),
        np.pad(np.ones((1, 1), bool), 3),
        np.pad(np.ones((1, 6), bool), 2),
        _ring(),
    ],
    ids=["full", "cross", "pixel", "line", "holes"],
)
def test_polygons_rasterise_back_to_the_mask(mask):
    polygons = mask_to_polygons(mask)
    assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    assert np.array_equal(_rasterised(polygons, mask.shape), mask)


def test_box_is_tight():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:11] = True
    assert mask_to_box(mask) == [3.0, 2.0, 8.0, 3.0]
