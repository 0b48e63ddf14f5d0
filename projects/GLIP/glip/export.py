"""GLIP as a network that can be traced, whose captions are an input."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformer, window_partition
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ovd_d2.errors import SetupError
from ovd_d2.export.network import BOXES, CATEGORIES, SCORES, Network
from ovd_d2.modeling.traced import LEAVES_OUT, category_nms
from ovd_d2.projects.glip.box_coder import decode
from ovd_d2.projects.glip.head import HeadOutputs
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.postprocess import clipped
from ovd_d2.projects.glip.prompts import TokenBatch
from ovd_d2.vocabulary import Vocabulary

NO_TOKEN = -1  # id behind the last token of a caption that is shorter than others
_APART = -100.0  # what Detectron2's Swin adds where a window holds what lies apart


class TracedSwin(Backbone):
    """Detectron2's Swin, whose masks of shifted windows follow the size of the image in a trace."""

    def __init__(self, swin: SwinTransformer) -> None:
        super().__init__()
        self.swin = swin

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Swin's."""
        return self.swin.output_shape()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(1, 3, H, W), sides that are multiples of 32 -> "p1" and so on."""
        x = self.swin.patch_embed(images)
        height, width = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        found = {}
        for number, layer in enumerate(self.swin.layers):
            mask = _shifted_mask(height, width, layer)
            for block in layer.blocks:
                block.H, block.W = height, width
                x = block(x, mask)
            if number in self.swin.out_indices:
                normed = self.swin.get_submodule(f"norm{number}")(x)
                shape = x.shape[0], x.shape[2], height, width
                found[f"p{number}"] = normed.transpose(1, 2).reshape(shape)
            if layer.downsample is not None:
                x = layer.downsample(x, height, width)
                height, width = height // 2, width // 2
        return found


def _shifted_mask(height: int, width: int, layer: BasicLayer) -> Tensor:
    """(windows, s x s, s x s): what is added to the attention of shifted windows."""
    rows, columns = (_regions(side, layer) for side in (height, width))
    regions = (rows[:, None] * 3 + columns)[None, :, :, None]
    windows = window_partition(regions, layer.window_size).flatten(1)
    return torch.where(windows[:, None] == windows[:, :, None], 0.0, _APART)


def _regions(side: int, layer: BasicLayer) -> Tensor:
    """Of each place of a padded side: 0, or 1 and 2 for the parts of the last window."""
    window = layer.window_size
    padded = (side + window - 1) // window * window
    places = torch.arange(padded)
    return (places >= padded - window).long() + (places >= padded - layer.shift_size).long()


class GLIPNetwork(nn.Module):
    """One image's detections under K captions of at most L tokens and C names each.

    forward: image (3, H, W) uint8, the captions, positives (K, C, L) share of each token in each
    name, labels (K, C) int64 what the names stand for -> boxes (D, 4), scores (D,), categories
    (D,). The captions are, with fusion, ids (K, L) int64 of their tokens, NO_TOKEN where one is
    shorter; without, tokens (K, L, T) of the text encoder, 0 there.
    """

    def __init__(self, model: GLIP) -> None:
        super().__init__()
        self.model = model
        self.backbone = deepcopy(model.backbone)
        if isinstance(self.backbone.bottom_up, SwinTransformer):  # a ResNet is traced as it is
            self.backbone.bottom_up = TracedSwin(self.backbone.bottom_up)

    def forward(
        self, image: Tensor, captions: Tensor, positives: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        images = self.model.preprocess([{"image": image}])
        maps = self.backbone(images.tensor)
        levels = [maps[level] for level in self.model.in_features]
        outputs = self.model.head(levels, *self._text(captions))
        boxes, scores, found = self._candidates(outputs, positives, labels)
        boxes = clipped(boxes, images.image_sizes[0])
        boxes = boxes + boxes.new_tensor([0, 0, 1, 1])  # the last pixel belongs to a box
        kept = self._kept(boxes, scores, found)
        return boxes[kept], scores[kept], found[kept]

    def _text(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """(K, L, T) and (K, L) bool, as the head takes them."""
        if not self.model.head.fused:  # what is padded is 0 already
            return captions, torch.ones_like(captions[..., 0], dtype=torch.bool)
        mask = captions != NO_TOKEN
        return self.model.text(TokenBatch(captions.clamp(min=0), mask)), mask

    def _candidates(
        self, outputs: HeadOutputs, positives: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 4), (N,), (N,): caption by caption, the best of each level above the threshold."""
        anchors = self.model.anchors(outputs)
        parts = [self._of_level(outputs, k, anchors[k], positives) for k in range(len(anchors))]
        boxes, scores, rows = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        (places,) = (scores.flatten() >= 0).nonzero(as_tuple=True)
        found = labels.gather(1, rows).flatten()[places]
        return boxes.flatten(0, 1)[places], scores.flatten()[places].sqrt(), found

    def _of_level(
        self, outputs: HeadOutputs, level: int, anchors: Tensor, positives: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(K, M, 4) boxes, (K, M) squares of scores, -1 of none, (K, M) names of the caption."""
        selection = self.model.selection
        probabilities = outputs.logits[level].sigmoid() @ positives.transpose(1, 2)  # (K, P, C)
        scores = probabilities * outputs.centerness[level].sigmoid()[..., None]
        scores = torch.where(probabilities > selection.score_threshold, scores, -1.0).flatten(1)
        count: Any = torch.clamp(torch.as_tensor(scores.shape[1]), max=selection.per_level)
        scores, best = scores.topk(count, dim=1)
        places = best.div(positives.shape[1], rounding_mode="floor")
        deltas = outputs.deltas[level].gather(1, places[..., None].expand(-1, -1, 4))
        boxes = decode(deltas, anchors[places])
        return boxes, scores, best - places * positives.shape[1]

    def _kept(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Places of what suppression and the cap leave; best first."""
        selection = self.model.selection
        none = scores.new_full((1,), LEAVES_OUT)
        count: Any = torch.cat([labels, labels.new_zeros(1)]).max() + 1
        names = torch.arange(count)
        by_name = torch.where(labels == names[:, None], scores, none)  # (names, N)
        _, kept = category_nms(boxes, by_name, selection.nms_threshold, none[0])
        kept = kept.sort().values  # equal scores stay in the order of the candidates
        all_of_them: Any = torch.as_tensor(kept.shape[0])
        best, order = scores[kept].topk(all_of_them)
        lowest = torch.cat([best, none.expand(selection.limit)])[selection.limit - 1]
        return kept[order[best >= lowest]]


def glip_network(model: nn.Module) -> Network:
    """What of a GLIP is exported.

    Raises:
        SetupError: it scores names in another way than by their tokens' mean.
    """
    assert isinstance(model, GLIP)
    selection = model.selection
    if selection.aggregation != "mean":
        raise SetupError(
            [f"MODEL.GLIP.AGGREGATION '{selection.aggregation}' cannot be exported: 'mean' can"]
        )
    texts, example = _texts(model, [torch.ones(5, dtype=torch.int64)] * 2)
    return Network(
        GLIPNetwork(model).eval(),
        {
            texts: ("captions", "tokens", "")[: example.dim()],
            "positives": ("captions", "names", "tokens"),
            "labels": ("captions", "names"),
        },
        {
            texts: example,
            "positives": torch.full((2, 3, 5), 0.2),
            "labels": torch.arange(6).view(2, 3),
        },
        (BOXES, SCORES, CATEGORIES),
        lambda vocabulary: words_of(model, vocabulary),
        {
            "score_threshold": selection.score_threshold,
            "nms_threshold": selection.nms_threshold,
            "detections_per_image": selection.limit,
        },
    )


def words_of(model: GLIP, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The captions of a vocabulary, as the network takes them."""
    questions = model.questions_of(vocabulary)
    kind, texts = _texts(model, [one.ids for one in questions])
    positives = torch.zeros(
        len(questions), max(len(one.labels) for one in questions), texts.shape[1]
    )
    labels = torch.zeros(positives.shape[:2], dtype=torch.int64)
    for row, one in enumerate(questions):
        positives[row, : len(one.labels), : one.positives.shape[1]] = one.positives
        labels[row, : len(one.labels)] = one.labels
    return {kind: texts, "positives": positives, "labels": labels}


def _texts(model: GLIP, ids: list[Tensor]) -> tuple[str, Tensor]:
    """The input that captions are, by its name."""
    if model.head.fused:
        return "ids", pad_sequence(ids, batch_first=True, padding_value=NO_TOKEN)
    with torch.no_grad():
        texts = [model.captions([one])[0][0] for one in ids]
    return "tokens", pad_sequence(texts, batch_first=True)
