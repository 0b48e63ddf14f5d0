"""Names of categories as captions: in training, and in chunks."""

import random

import numpy as np
import pytest

from ovd_d2.projects.glip.prompts.chunks import chunks_by_count, chunks_by_length
from ovd_d2.projects.glip.prompts.detection import (
    LIMIT,
    AllNames,
    DetectionPrompts,
    Phrase,
    PublicPrompts,
    clean_name,
    name_length,
    names_prompt,
    public_labels,
    split_positives,
)
from ovd_d2.projects.glip.prompts.spans import tokens_of
from tests.projects.glip.small_words import small_tokenizer

TOKENIZER = small_tokenizer()
NAMES = ["cat", "snowman", "traffic_light", "cup_(drink)", "red_umbrella", "bird", "old man", "bus"]


def generator(seed=0):
    return np.random.default_rng(seed)


def words_of(prompt):
    return [prompt.caption[first:end] for ((first, end),) in prompt.spans]


def test_cleaning():
    found = [clean_name(one) for one in ("cup_(x)", "a__b", "x (old) and (new)", "Band_Aid")]
    assert found == ["cup ", "a b", "x ", "Band Aid"]


def test_a_caption_of_names():
    prompt = names_prompt(["cat", "cup_(x)", Phrase("anchor", "red ", " on a sofa")], [7, 3, 5])
    assert prompt.caption == "cat. cup . red anchor on a sofa"
    assert words_of(prompt) == ["cat", "cup ", "anchor"] and prompt.labels == (7, 3, 5)
    assert names_prompt(["cat"]).caption == "cat"
    assert names_prompt([]).caption == ""


def test_every_positive_is_kept_and_none_is_asked_for_twice():
    prompts = DetectionPrompts(NAMES, TOKENIZER)
    for seed in range(20):
        prompt = prompts({1, 4}, generator(seed))
        assert {1, 4} <= set(prompt.labels) and len(set(prompt.labels)) == len(prompt.labels)
        assert words_of(prompt) == [clean_name(NAMES[k]) for k in prompt.labels]
        assert len(TOKENIZER.encode(prompt.caption)) <= LIMIT + 2
    orders = {prompts({1, 4}, generator(seed)).labels for seed in range(20)}
    assert len(orders) > 10


def test_the_same_generator_gives_the_same_prompt():
    prompts = DetectionPrompts(NAMES, TOKENIZER)
    assert prompts([4, 1], generator(3)) == prompts([1, 4, 4], generator(3))


def test_novel_and_withheld_names_are_no_negatives():
    prompts = DetectionPrompts(NAMES, TOKENIZER, withheld={2, 3})
    for seed in range(20):
        assert not {2, 3, 5} & set(prompts({1}, generator(seed), withheld={5}).labels)


def test_how_many_negatives():
    names = [f"cat {k}" for k in range(100)]
    numbers = [
        len(DetectionPrompts(names, TOKENIZER, negatives=9)({0}, generator(seed)).labels) - 1
        for seed in range(200)
    ]
    assert set(numbers) == set(range(1, 10))
    assert 0.45 < np.mean([one == 9 for one in numbers]) < 0.65  # half, and a ninth of the others
    assert len(DetectionPrompts(names, TOKENIZER, negatives=0)({0}, generator()).labels) == 1


def test_positives_that_do_not_fit_are_split_over_prompts():
    prompts = DetectionPrompts(NAMES, TOKENIZER, limit=8)
    positives = set(range(len(NAMES)))
    seen = set()
    for seed in range(60):
        prompt = prompts(positives, generator(seed))
        assert len(TOKENIZER.encode(prompt.caption)) <= 8 + 2
        assert len(prompt.labels) < len(NAMES)
        seen.update(prompt.labels)
    assert seen == positives  # none is dropped for good


def test_parts():
    lengths = {0: 3, 1: 3, 2: 2, 3: 4}
    assert split_positives([0, 1, 2, 3], lengths, 6) == [[0, 1], [2, 3]]
    assert split_positives([], lengths, 6) == [[]]
    assert split_positives([3], lengths, 4) == [[3]]


def test_images_without_objects_have_negatives_alone():
    prompt = DetectionPrompts(NAMES, TOKENIZER)(set(), generator())
    assert len(prompt.labels) >= 1
    assert DetectionPrompts(["cat"], TOKENIZER)({0}, generator()).caption == "cat"
    nothing = DetectionPrompts(["cat"], TOKENIZER, withheld={0})(set(), generator())
    assert nothing.caption == "" and len(TOKENIZER.encode("")) == 2


def test_a_name_that_no_prompt_can_hold():
    with pytest.raises(ValueError, match="'cat cat cat' has more than 3 tokens"):
        DetectionPrompts(["cat", "cat cat cat"], TOKENIZER, limit=3)


def test_all_names():
    fixed = AllNames(NAMES, TOKENIZER, shuffle=False)({2}, generator())
    assert fixed.labels == tuple(range(len(NAMES)))
    orders = {AllNames(NAMES, TOKENIZER)({2}, generator(seed)).labels for seed in range(5)}
    assert len(orders) == 5
    with pytest.raises(ValueError, match="its 128 names have 256 tokens"):
        AllNames(["cat"] * 128, TOKENIZER)
    assert len(TOKENIZER.encode(AllNames(["cat"] * 127, TOKENIZER)((), generator()).caption)) == 255


def test_the_public_code_draws_its_background_and_drops_positives():
    lengths = dict.fromkeys(range(1, 20), 30) | {0: 2}
    found = public_labels(
        range(1, 20), [*range(1, 20), 0], lengths, random.Random(0), np.random.RandomState(0)
    )
    assert len(found) == 8 and 0 not in found  # 8 * 30 tokens fit, and no negatives are added
    prompts = [PublicPrompts(NAMES, TOKENIZER)({0}, generator(seed)) for seed in range(20)]
    asked = [one for one in prompts if -1 in one.labels]
    assert asked and all(" background " in words_of(one) for one in asked)
    assert all(0 in one.labels for one in prompts)


def test_chunks_by_count():
    chunks = chunks_by_count(NAMES, TOKENIZER, 3)
    assert [one.prompt.labels for one in chunks] == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert [one.prompt.caption for one in chunks][2] == "old man. bus"
    assert chunks[0].encoding == TOKENIZER.encode("cat. snowman. traffic light")
    with pytest.raises(ValueError, match="names 0 to 199 have 401 tokens"):
        chunks_by_count(["cat"] * 200, TOKENIZER, 200)


@pytest.mark.parametrize("limit", [3, 5, 8, 20])
def test_chunks_by_length_hold_all_names_in_order(limit):
    chunks = chunks_by_length(NAMES, TOKENIZER, limit)
    assert [k for one in chunks for k in one.prompt.labels] == list(range(len(NAMES)))
    assert max(len(one.encoding) for one in chunks) <= limit + 2
    for one, following in zip(chunks, chunks[1:], strict=False):
        first = NAMES[following.prompt.labels[0]]
        more = len(one.encoding) - 2 + name_length(first, TOKENIZER)
        assert more > limit  # nothing more would have fitted


def test_tokens_of_names_in_a_chunk():
    (chunk,) = chunks_by_length(["cat", "snowman"], TOKENIZER)
    assert [tokens_of(one, chunk.encoding.offsets) for one in chunk.prompt.spans] == [[1], [3, 4]]


def test_names_that_no_chunk_can_hold():
    with pytest.raises(ValueError, match="'old cat' has 4 tokens, more than a chunk's 3"):
        chunks_by_length(["cat", Phrase("old cat", "the ", " ,")], TOKENIZER, 3)
    assert chunks_by_length([], TOKENIZER) == []
