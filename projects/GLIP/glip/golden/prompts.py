"""Prompts, spans, tokens and positive maps beside the public code's.

Of texts and lists the difference is how many are not the public code's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ovd_d2.golden import Found, GoldenFolder, Part, difference
from ovd_d2.projects.glip.prompts import (
    MAX_TOKENS,
    Prompt,
    Tokenizer,
    load_tokenizer,
    positive_map,
    token_batch,
    truncated,
)
from ovd_d2.projects.glip.prompts.chunks import Chunk, chunks_by_count
from ovd_d2.projects.glip.prompts.detection import (
    BACKGROUND,
    LIMIT,
    Phrase,
    clean_name,
    name_length,
    names_prompt,
    public_labels,
)
from ovd_d2.projects.glip.prompts.spans import Span, tokens_of

VOCABULARY = "bert_base_uncased_vocab.txt"
CHUNKED = "tiny_chunked.json"
# Case with a network -> what describes its captions
CASES = {
    "tiny": "tiny_train.json",
    "tiny_a": "tiny_a_train.json",
    "glip_t": "glip_t_forward.json",
    "glip_a": "glip_a_forward.json",
}
SHARES = 2e-6  # the public rows sum to n / (n + 1e-6)


def tokenizer_of(folder: GoldenFolder) -> Tokenizer:
    """That of the folder's vocabulary."""
    return load_tokenizer(str(folder.path / VOCABULARY))


def _training(folder: GoldenFolder, file: str) -> Found:
    golden, tokenizer = folder.json(file), tokenizer_of(folder)
    cleaned = golden["clean_name"]
    yield "clean_name", _unequal({k: clean_name(k) for k in cleaned}, cleaned), 0.0
    for case in golden["cases"]:
        names = golden["class_lists"][case["names"]]
        name = f"{case['names']}, seed {case['seed']}"
        prompt, used = _drawn(case, names, tokenizer)
        found = _described(prompt, case["labels_of_boxes"], tokenizer)
        found["positive_token_length"] = used
        expected = {key: case[key] for key in found}
        yield name, _unequal(found, expected), 0.0
        shares = torch.tensor([1 / len(one) for one in found["positive_tokens"]])
        apart = difference(shares, torch.tensor(case["positive_value"]))
        yield f"{name}: positive_value", apart, SHARES
    for case in golden["fixed_order_cases"]:
        names = golden["class_lists"][case["names"]]
        found = _described(names_prompt(names, range(1, len(names) + 1)), case["boxes"], tokenizer)
        keys = ("caption", "tokens_positive", "positive_tokens")
        yield f"{case['names']}, in order", _unequal(found, case, keys), 0.0


def _drawn(
    case: Mapping[str, Any], names: Sequence[str], tokenizer: Tokenizer
) -> tuple[Prompt, int]:
    """The prompt, and the tokens of the positives up to the first that does not fit."""
    by_id = {k + 1: name for k, name in enumerate(names)} | {0: BACKGROUND}
    lengths = {k: name_length(name, tokenizer) for k, name in by_id.items()}
    boxes, seed = case["labels_of_boxes"], case["seed"]
    numbers = random.Random(seed), np.random.RandomState(seed)
    order = public_labels(boxes, list(by_id), lengths, *numbers)
    shuffled = list(set(boxes))
    random.Random(seed).shuffle(shuffled)
    used = 0
    for one in shuffled:
        used += lengths[one]
        if used > LIMIT:
            break
    return names_prompt([by_id[k] for k in order], order), used


def _described(prompt: Prompt, boxes: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the reference says of a prompt."""
    whole = tokenizer.encode(prompt.caption)
    seen = truncated(whole)
    spans = dict(zip(prompt.labels, prompt.spans, strict=True))
    kept = [k for k, label in enumerate(boxes) if label in spans]
    tokens = [tokens_of(spans[boxes[k]], seen.offsets) for k in kept]
    owners = {
        str(token): label for label, one in spans.items() for token in tokens_of(one, seen.offsets)
    }
    return {
        "caption": prompt.caption,
        "label_order_in_caption": list(prompt.labels),
        "label_to_char_span": {str(label): list(one[0]) for label, one in spans.items()},
        "kept_box_indices": kept,
        "untruncated_token_count": len(whole),
        "token_count": len(seen),
        "tokens_positive": [[list(one) for one in spans[boxes[k]]] for k in kept],
        "positive_tokens": tokens,
        "od_label_of_token": owners,
    }


def _test(folder: GoldenFolder, file: str) -> Found:
    golden, tokenizer = folder.json(file), tokenizer_of(folder)
    names = [one["name"] for one in sorted(LVIS_CATEGORIES, key=lambda one: one["id"])]
    chunks = chunks_by_count(names, tokenizer, golden["chunk_size"])
    found: Any = {
        "queries": [one.prompt.caption for one in chunks],
        "token_count_with_cls_sep": [len(one.encoding) for one in chunks],
        "label_to_tokens": [_label_tokens(one) for one in chunks],
    }
    yield "LVIS in chunks", _unequal(found, golden, tuple(found)), 0.0
    things = [one["name"] for one in COCO_CATEGORIES if one["isthing"]]
    yield "coco80", _unequal(_one_chunk(things, tokenizer), golden["coco80"]), 0.0
    manual = golden["manual_prompt"]
    phrases = [Phrase(one["name"], one["prefix"], one["suffix"]) for one in manual["prompt"]]
    keys = ("query", "label_to_tokens")
    yield "manual_prompt", _unequal(_one_chunk(phrases, tokenizer), manual, keys), 0.0


def _one_chunk(names: Sequence[str | Phrase], tokenizer: Tokenizer) -> dict[str, Any]:
    (chunk,) = chunks_by_count(names, tokenizer, len(names))
    return {
        "query": chunk.prompt.caption,
        "label_to_tokens": _label_tokens(chunk),
        "token_count": len(chunk.encoding),
    }


def _label_tokens(chunk: Chunk) -> dict[str, list[int]]:
    """The reference counts labels from 1 on."""
    prompt = chunk.prompt
    return {
        str(label + 1): tokens_of(spans, chunk.encoding.offsets)
        for label, spans in zip(prompt.labels, prompt.spans, strict=True)
    }


def _chunked(folder: GoldenFolder, file: str) -> Found:
    golden = folder.json(file)
    chunks = chunks_by_count(golden["names"], tokenizer_of(folder), golden["chunk_size"])
    found: Any = {
        "queries": [one.prompt.caption for one in chunks],
        "label_to_tokens": [_label_tokens(one) for one in chunks],
    }
    yield "names in chunks", _unequal(found, golden, tuple(found)), 0.0


class Captions(NamedTuple):
    """The texts of a case with a network, which two kinds of files describe."""

    texts: list[str]
    spans: list[list[list[Span]]]  # of each text, of each of its phrases
    label_to_tokens: dict[str, list[int]]


def _captions(golden: Mapping[str, Any]) -> Captions:
    if "captions" in golden:
        tokens = golden["inference_label_to_tokens"]
        return Captions(golden["captions"], golden["tokens_positive"], tokens)
    spans = [[[one] for one in golden["char_spans"]]]
    return Captions([golden["caption"]], spans, golden["label_to_tokens"])


def _labels(folder: GoldenFolder, file: str) -> Found:
    captions = _captions(folder.json(file))
    offsets = tokenizer_of(folder).encode(captions.texts[0]).offsets
    found = {str(k + 1): tokens_of(one, offsets) for k, one in enumerate(captions.spans[0])}
    yield "label to tokens", _unequal(found, captions.label_to_tokens), 0.0


def _texts(folder: GoldenFolder, file: str, *, described: str) -> Found:
    tensors, captions = folder.tensors(file), _captions(folder.json(described))
    tokenizer = tokenizer_of(folder)
    encodings = [tokenizer.encode(one) for one in captions.texts]
    batch = token_batch([one.ids for one in encodings], length=MAX_TOKENS)
    pairs = zip(captions.spans, encodings, strict=True)
    shares = torch.cat([positive_map(one, text.offsets, MAX_TOKENS) for one, text in pairs])
    for name, ours, tolerance in (
        ("input_ids", batch.ids, 0.0),
        ("attention_mask", batch.mask, 0.0),
        ("positive_map", shares, SHARES),
        ("positive_map_normalised", shares, SHARES),
        ("positive_map_binary", shares > 0, 0.0),
    ):
        if (theirs := tensors.get(f"text.{name}")) is not None:
            yield f"text.{name}", difference(ours, theirs), tolerance


def _unequal(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], keys: Sequence[str] | None = None
) -> float:
    """How many entries are not equal, or are on one side only."""
    wanted = set(ours) | set(theirs) if keys is None else set(keys)
    missing = object()
    return float(sum(ours.get(key, missing) != theirs.get(key, missing) for key in wanted))


PARTS = (
    Part("prompts of training", ("prompts.json", VOCABULARY), _training),
    Part("prompts of tests", ("test_prompts.json", VOCABULARY), _test),
    Part("prompts in chunks", (CHUNKED, VOCABULARY), _chunked),
    *(
        part
        for name, described in CASES.items()
        for part in (
            Part(f"labels of {name}", (described, VOCABULARY), _labels),
            Part(
                f"texts of {name}",
                (f"{name}_forward.safetensors", described, VOCABULARY),
                partial(_texts, described=described),
            ),
        )
    ),
)
