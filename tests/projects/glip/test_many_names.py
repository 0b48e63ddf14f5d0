"""Many names in one pass over an image give what a whole pass per chunk of names gives."""

import copy
import pickle
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice, product

import pytest
import torch
from benchmarks.glip import attend_by_definition

from ovd_d2.golden import unmatched_boxes
from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.clamping import LIMIT
from ovd_d2.projects.glip.fusion import Fusion
from ovd_d2.projects.glip.postprocess import Candidates, candidates, select
from ovd_d2.projects.glip.prompts import token_batch
from ovd_d2.projects.glip.prompts.detection import Phrase
from ovd_d2.projects.glip.text_cache import TextCache
from ovd_d2.vocabulary import Categories, Vocabulary
from tests.tiny_glip import WORDS, image, tiny_glip

NAMES = [" ".join(words) for words in islice(product(WORDS[5:], repeat=4), 1203)]


def vocabulary(names):
    embeddings = torch.eye(1).expand(len(names), 1)
    return Vocabulary(list(names), embeddings, torch.zeros(len(names), dtype=torch.bool))


def fusion_and_inputs(seed=0, gain=1.0):
    torch.manual_seed(seed)
    fusion = Fusion(16, 24, width=64, heads=8, gain=0.5, dropout=0.0).eval()
    for name, one in fusion.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(one, std=0.5)
    for layer in (fusion.image_query, fusion.text_key):
        layer.weight.data *= gain
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    return fusion, torch.randn(3, 70, 16), torch.randn(3, 9, 24), mask


def gradients(fusion, attend, maps, text, mask):
    """Outputs of an `attend`, and how a sum of them moves with inputs and weights; float64."""
    fusion.double()
    inputs = [one.double().requires_grad_() for one in (maps, text)]
    outputs = attend(*inputs, mask)
    moved = [*inputs, *fusion.parameters()]
    total = sum((one * one.detach().cos()).sum() for one in outputs)
    return outputs, torch.autograd.grad(total, moved, materialize_grads=True, allow_unused=True)


@pytest.mark.parametrize("gain", [1.0, 400.0], ids=["usual scores", "clamped scores"])
def test_folded_projections_are_exact(gain):
    fusion, maps, text, mask = fusion_and_inputs(gain=gain)
    query = fusion._heads(fusion.image_query(maps) * fusion.scale)
    scores = query @ fusion._heads(fusion.text_key(text)).transpose(2, 3)
    assert ((scores.abs() > LIMIT).float().mean() > 0.1) == (gain > 1)
    plain = gradients(fusion, partial(attend_by_definition, fusion), maps, text, mask)
    folded = gradients(fusion, fusion.attend, maps, text, mask)
    torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)


def test_folded_projections_are_exact_under_dropout():
    fusion, maps, text, mask = fusion_and_inputs()
    # the same in any layout
    fusion.dropout.forward = lambda weights: 2 * weights * (weights > 0.02)
    plain = gradients(fusion, partial(attend_by_definition, fusion), maps, text, mask)
    folded = gradients(fusion, fusion.attend, maps, text, mask)
    torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)


def test_dropout_is_for_training():
    fusion, maps, text, mask = fusion_and_inputs()
    fusion.dropout.p = 0.5
    with torch.no_grad():
        still, again = (fusion.fuse(maps, text, mask) for _ in range(2))
        first, second = (fusion.train().fuse(maps, text, mask) for _ in range(2))
    for side in range(2):
        assert torch.equal(still[side], again[side])
        assert not torch.equal(first[side], second[side])


@torch.no_grad()
def test_one_image_under_several_texts():
    fusion, maps, text, mask = fusion_and_inputs()
    together = fusion.fuse(maps[:1], text, mask)
    for row in range(3):
        alone = fusion.fuse(maps[:1], text[row : row + 1], mask[row : row + 1])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row], other[0], rtol=1e-5, atol=1e-5)


def whole_passes(model, one, questions):
    """The public code's way: the whole network per chunk, 256 tokens, then NMS."""
    images = model.preprocess([one])
    size, without_limit = images.image_sizes[0], replace(model.selection, limit=10**6)
    found = []
    for question in questions:
        outputs = model.network(images.tensor, token_batch([question.ids], length=256))
        asked = (grid_anchors(outputs.sizes), question.positives, question.labels)
        with torch.no_grad():
            parts = [candidates(outputs, 0, *asked, model.selection)]
            found.append(select(parts, size, without_limit))
    fields = {
        name: torch.cat([getattr(one, name) for one in found])
        for name in ("boxes", "scores", "labels")
    }
    best = fields["scores"].topk(model.selection.limit).indices
    return Candidates(**{name: one[best] for name, one in fields.items()})


@pytest.mark.parametrize(
    ("fused", "names", "chunks"), [(True, NAMES, 24), (False, NAMES[:400], 8)], ids=["fusion", "no"]
)
def test_names_as_one_whole_pass_per_chunk(fused, names, chunks):
    """1,203 names, LVIS's number."""
    model = tiny_glip(fused=fused, vocabulary=vocabulary(names)).eval()
    model.selection = replace(model.selection, limit=100)
    questions = model._questions
    assert len(questions) == chunks and max(len(one.ids) for one in questions) > 250
    expected = whole_passes(model, image(0), questions)
    with torch.no_grad():
        found = model([image(0)])[0]["instances"]
    boxes = found.pred_boxes.tensor - torch.tensor([0, 0, 1, 1])
    labels = (found.pred_classes, expected.labels)
    assert len(found) == 100 and len(expected.labels.unique()) > 20
    assert unmatched_boxes(boxes, expected.boxes, labels, 1e-3) == 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)


@torch.no_grad()
def test_how_many_captions_go_side_by_side_changes_nothing():
    model = tiny_glip(vocabulary=vocabulary(NAMES[:200])).eval()
    scores = []
    for model.captions_per_pass in (1, 3, 100):
        scores.append(model([image(0)])[0]["instances"].scores)
    for one in scores[1:]:
        torch.testing.assert_close(one, scores[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("fused", "passes"), [(True, 3), (False, 1)])
@torch.no_grad()
def test_what_text_does_not_change_is_done_once_per_image(fused, passes):
    model = tiny_glip(fused=fused, vocabulary=vocabulary(NAMES[:500])).eval()
    assert len(model._questions) == 10
    counts = {"backbone": 0, "dyconv": 0}
    for name, part in (("backbone", model.backbone), ("dyconv", model.head.tower[0].dyconv)):
        part.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    model([image(0)])
    assert counts == {"backbone": 1, "dyconv": passes}


@torch.no_grad()
def test_images_of_a_batch_may_be_asked_different_things():
    model = tiny_glip(vocabulary=vocabulary(NAMES[:200])).eval()
    (question,) = model.questions_of(vocabulary(["blue cup"]))
    own = {**image(1), "tokens": question.ids, "positive_map": question.positives}
    together = model([image(0), own])
    for one, alone in zip(together, [model([image(0)])[0], model([own])[0]], strict=True):
        assert torch.equal(one["instances"].scores, alone["instances"].scores)


class Counted:
    """A text encoder that counts its captions."""

    def __init__(self, encoder):
        self.count = 0
        encoder.register_forward_hook(self._add)

    def _add(self, *_):
        self.count += 1


@torch.no_grad()
def test_captions_are_encoded_once_for_all_images():
    model = tiny_glip(vocabulary=vocabulary(NAMES[:200])).eval()
    counted = Counted(model.text_encoder)
    first = model([image(0)])[0]["instances"].scores
    model([image(1)])
    assert counted.count == len(model._questions) == 4
    assert torch.equal(model([image(0)])[0]["instances"].scores, first)


@torch.no_grad()
def test_names_of_a_call_are_put_into_captions_once_for_all_images():
    model = tiny_glip().eval()
    first = model([image(0)], vocabulary=vocabulary(NAMES[:200]))[0]["instances"]
    kept = model.questions_of(vocabulary(NAMES[:200]))  # by what the names are, not by the object
    again = model([image(0)], vocabulary=vocabulary(NAMES[:200]))[0]["instances"]
    assert model.questions_of(vocabulary(NAMES[:200])) is kept
    assert torch.equal(first.scores, again.scores)
    assert torch.equal(first.pred_boxes.tensor, again.pred_boxes.tensor)


def test_other_names_or_settings_are_put_into_captions_anew():
    model = tiny_glip()
    words = Vocabulary.of_names(Categories(["anchor", "cup"], [False] * 2), [["bow"], []])
    moved = Vocabulary.of_names(Categories(["anchor", "cup"], [False] * 2), [[], ["bow"]])
    assert [one.labels.tolist() for one in model.questions_of(words)] == [[0, 1, 0]]
    assert [one.labels.tolist() for one in model.questions_of(moved)] == [[0, 1, 1]]
    model.names_per_caption = 2
    assert [one.labels.tolist() for one in model.questions_of(moved)] == [[0, 1], [1]]
    model.set_phrases({"cup": Phrase("cup", "red ")})
    (first, _) = model.questions_of(moved)
    assert first.ids.tolist() == [2, 7, 4, 5, 8, 3]  # [CLS] anchor . red cup [SEP]


def test_changed_weights_are_encoded_anew():
    model = tiny_glip()
    cache, ids = TextCache(), [torch.tensor([2, 5, 3])]
    (before,) = cache(model.text_encoder.eval(), ids)
    assert cache(model.text_encoder, ids)[0] is before and not before.requires_grad
    model.text_encoder(ids[0][None], torch.ones(1, 3) > 0).sum().backward()
    torch.optim.AdamW(model.text_encoder.parameters(), lr=0.1).step()
    (stepped,) = cache(model.text_encoder, ids)
    assert not torch.allclose(stepped, before)
    model.load_state_dict(tiny_glip(seed=1).state_dict())
    (loaded,) = cache(model.text_encoder, ids)
    assert not torch.allclose(loaded, stepped)
    assert cache(model.text_encoder.double(), ids)[0].dtype == torch.float64


def test_the_cache_keeps_what_was_asked_last():
    encoder, cache = tiny_glip().text_encoder.eval(), TextCache(limit=2)
    counted = Counted(encoder)
    a, b, c = (torch.tensor([2, token, 3]) for token in (5, 6, 7))
    for ids in ([a], [b], [a], [c], [a]):  # c takes the place of b
        cache(encoder, ids)
    assert len(cache) == 2 and counted.count == 3
    assert len(cache(encoder, [a, b, c])) == 3 and len(cache) == 2


class Slow(OrderedDict):
    """Lets other threads in between an entry's coming and its move to the end."""

    def move_to_end(self, key, last=True):
        time.sleep(0.005)
        super().move_to_end(key, last)


def test_threads_share_a_cache():
    encoder, cache = tiny_glip().text_encoder.eval(), TextCache(limit=1)
    cache._found = Slow()
    captions = [torch.tensor([2, token, 3]) for token in (5, 6, 7, 8)]
    expected = [TextCache()(encoder, [one])[0] for one in captions]
    with ThreadPoolExecutor(4) as pool:
        calls = [(k, pool.submit(cache, encoder, [captions[k]])) for k in [0, 1, 2, 3] * 4]
        for k, call in calls:
            assert torch.equal(call.result()[0], expected[k])


def test_a_copy_of_a_cache_is_empty():
    cache = TextCache(limit=2)
    cache(tiny_glip().text_encoder.eval(), [torch.tensor([2, 5, 3])])
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):  # noqa: S301
        assert len(copied) == 0 and copied._limit == 2
    assert len(cache) == 1
