"""GLIP: what words name, found by comparing every location with every token of a caption."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ovd_d2.captions import Asked, Caption
from ovd_d2.errors import SetupError
from ovd_d2.modeling.vocabulary_holder import VocabularyHolder
from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.head import GLIPHead, HeadOutputs, TowerSizes
from ovd_d2.projects.glip.losses import PUBLIC, LossSettings, glip_losses
from ovd_d2.projects.glip.postprocess import Candidates, Selection, candidates, select
from ovd_d2.projects.glip.prompts import (
    MAX_TOKENS,
    LazyTokenizer,
    TokenBatch,
    Tokenizer,
    padded_columns,
    token_batch,
)
from ovd_d2.projects.glip.prompts.chunks import Chunk, chunks_of
from ovd_d2.projects.glip.prompts.detection import Phrase, phrases_of, with_phrases
from ovd_d2.projects.glip.questions import POSITIVES, TOKENS, Question, asked_in, question_of
from ovd_d2.projects.glip.text import BertSizes, TextEncoder
from ovd_d2.projects.glip.text_cache import TextCache
from ovd_d2.projects.glip.tuning import FULL, PROMPT, freeze_for, keep_still, tuning_problem
from ovd_d2.structures import ENCODED
from ovd_d2.vocabulary import Vocabulary, configured_vocabulary

logger = logging.getLogger(__name__)

LEVELS = ("p3", "p4", "p5", "p6", "p7")
TOKEN_TARGETS = "gt_token_targets"  # field of `instances`


@META_ARCH_REGISTRY.register()
class GLIP(VocabularyHolder):
    """Grounded language-image pre-training (Li et al., arXiv 2112.03857).

    Boxes come in and go out as Detectron2's, of the original image in the end. Inside, the last
    pixel belongs to a box, as in the public code: a box that ends at x2 has its last pixel at
    x2 - 1 of the original image.

    Detections of an image do not depend on the others of its batch: attention and norms see the
    padding, so that images go through the network one by one. All captions that an image is asked
    share its pyramid, and what the text encoder makes of them is kept for the next image.

    Attributes:
        backbone: a pyramid.
        in_features: its levels that are looked at, finest first.
        text_encoder: tokens to embeddings.
        head: the tower and its outputs.
        selection: which detections are kept.
        captions_per_pass: questions about an image that the tower takes at once.
        tuning: what trains, see :mod:`ovd_d2.projects.glip.tuning`.
        prompt_offset: (256, width) that prompt tuning adds to a caption's embeddings, by their
            place; None in the other modes.
        names_per_caption: of a vocabulary; 0: as many as fit.
        loss_settings: weights of what training adds up.
        vocabulary: what it looks for in images that bring no caption. Only the names matter. A
            state dict holds it, and brings it to a model that was given none.
    """

    reads_names = True

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        text_encoder: TextEncoder,
        head: GLIPHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        selection: Selection,
        tokenizer: Tokenizer | None = None,
        vocabulary: Vocabulary | None = None,
        captions_per_pass: int = 4,
        tuning: str = FULL,
        phrases: Mapping[str, Phrase] | None = None,
        names_per_caption: int = 0,
        in_features: Sequence[str] = LEVELS,
        loss_settings: LossSettings = PUBLIC,
    ) -> None:
        """
        Args:
            backbone, text_encoder, head, selection, captions_per_pass, tuning, names_per_caption,
                in_features, loss_settings: see the attributes.
            pixel_mean, pixel_std: of each channel, in the order of the input's.
            tokenizer: of the names of a vocabulary; None: images bring their tokens.
            vocabulary: what to look for in images that bring no caption.
            phrases: what is asked for in place of a name.

        Raises:
            ValueError: there is no such `tuning`.
            SetupError: the backbone lacks a level.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = tuple(in_features)
        self._strides = _strides(backbone, in_features)
        self.text_encoder = text_encoder
        self.head = head
        self.selection = selection
        self.captions_per_pass = captions_per_pass
        self._text_cache = TextCache()
        self.tuning = tuning
        offset = torch.zeros(MAX_TOKENS, text_encoder.width) if tuning == PROMPT else None
        self.prompt_offset = None if offset is None else nn.Parameter(offset)
        freeze_for(self, tuning)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self._tokenizer = tokenizer
        self._phrases = dict(phrases or {})
        self.names_per_caption = names_per_caption
        self.loss_settings = loss_settings
        self._questions: list[Question] | None = None  # of the vocabulary, once they are needed
        # what was last asked in a call, and its questions: mostly the next image is asked the same
        self._last_asked: tuple[object, list[Question]] = (None, [])
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        glip, backbone = cfg.MODEL.GLIP, build_backbone(cfg)
        sizes = bert_sizes(glip.BERT)
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        return {
            "backbone": backbone,
            "text_encoder": TextEncoder(
                sizes,
                pretrained=glip.BERT.PRETRAINED,
                until_loaded=bool(cfg.MODEL.WEIGHTS),
                dropout=glip.DROPOUT,
                gradient_checkpointing=glip.GRADIENT_CHECKPOINTING,
            ),
            "head": GLIPHead(_tower_sizes(glip, channels)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "selection": Selection(
                score_threshold=glip.SCORE_THRESH,
                per_level=glip.PRE_NMS_TOPK,
                nms_threshold=glip.NMS_THRESH,
                limit=cfg.TEST.DETECTIONS_PER_IMAGE,
                aggregation=glip.AGGREGATION,
            ),
            "tokenizer": LazyTokenizer(glip.TOKENIZER),
            "vocabulary": configured_vocabulary(cfg),
            "captions_per_pass": glip.CAPTIONS_PER_PASS,
            "tuning": glip.TUNING,
            "phrases": phrases_of(glip.PROMPTS.PHRASES),
            "names_per_caption": glip.NAMES_PER_CAPTION,
            "in_features": glip.IN_FEATURES,
            "loss_settings": LossSettings(
                alpha=glip.FOCAL_LOSS_ALPHA,
                gamma=glip.FOCAL_LOSS_GAMMA,
                box_weight=glip.BOX_WEIGHT,
            ),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> GLIP:
        """As any module; what the tuning keeps frozen and still stays in eval mode."""
        super().train(mode)
        if mode:
            keep_still(self, self.tuning)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """
        Raises:
            SetupError: an offset of prompt tuning would be lost; or what the tuning freezes would
                stay as it was drawn.
        """
        if problem := tuning_problem(self, self.tuning, state_dict, prefix):
            raise SetupError([problem])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def set_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """Makes it look for these names in images that bring no caption; no weight changes.

        Raises:
            ValueError: there is no tokenizer; a name is longer than a caption may be.
        """
        chunks = [] if vocabulary is None else self._chunks(vocabulary)
        self.vocabulary = vocabulary
        self._questions = [] if vocabulary is None else _questions(chunks, vocabulary)
        self._was_given = vocabulary is not None
        if chunks:
            logger.info(
                "Looking for %d names in %d captions of at most %d tokens, the first: %s",
                sum(len(one.prompt.labels) for one in chunks),
                *(len(chunks), max(len(one.encoding) for one in chunks), chunks[0].prompt.caption),
            )

    def set_phrases(self, phrases: Mapping[str, Phrase]) -> None:
        """What is asked for in place of a name from now on."""
        self._phrases, self._questions = dict(phrases), None

    def _take_loaded(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self._questions = vocabulary, None

    def forget_loaded_vocabulary(self) -> None:
        """See :meth:`VocabularyHolder.forget_loaded_vocabulary`."""
        super().forget_loaded_vocabulary()
        if self.vocabulary is None:
            self._questions = None

    def questions_of(self, vocabulary: Vocabulary) -> list[Question]:
        """The names in captions; errors of :meth:`set_vocabulary`.

        Those of the last vocabulary are kept, so that image after image may be asked for it.
        """
        words, owners = tuple(vocabulary.words), tuple(vocabulary.owners.tolist())
        asked = words, owners, self._phrases, self.names_per_caption
        known, questions = self._last_asked  # one look: other threads may ask, too
        if known != asked:
            questions = _questions(self._chunks(vocabulary), vocabulary)
            self._last_asked = asked, questions
        return questions

    def ask(self, caption: Caption) -> Asked:
        """The phrases of a text, as images are asked for them; errors of :func:`asked_in`.

        Raises:
            ValueError: there is no tokenizer.
        """
        return asked_in(caption, self._needed_tokenizer)

    def _chunks(self, vocabulary: Vocabulary) -> list[Chunk]:
        names = with_phrases(vocabulary.words, self._phrases)
        return chunks_of(names, self._needed_tokenizer, self.names_per_caption)

    @property
    def _needed_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError("GLIP has no tokenizer for the names: set MODEL.GLIP.TOKENIZER")
        return self._tokenizer

    def _asked(self, vocabulary: Vocabulary | None) -> list[Question]:
        if vocabulary is not None:
            return self.questions_of(vocabulary)
        if self._questions is None and self.vocabulary is not None:
            self._questions = self.questions_of(self.vocabulary)
        return self._questions or []

    def forward(
        self, batched_inputs: list[dict[str, Any]], vocabulary: Vocabulary | None = None
    ) -> Any:
        """
        Args:
            batched_inputs: Detectron2's. In training with `tokens`, (L,) int64 of the caption, and
                on `instances` the field `gt_token_targets`, (M, L) bool. At test time an image
                with `tokens` and `positive_map` (C, L) is asked for these C labels.
            vocabulary: at test time, what to look for in this call; None: what the model holds.

        Returns:
            In training scalars by name; else a dict per image with `instances`: `pred_boxes`,
            `scores` and `pred_classes`, in the size of the original image.

        Raises:
            ValueError: a vocabulary is given in training, where captions come with the images.
            RuntimeError: an image brings no caption, and there is no vocabulary.
        """
        if self.training:
            if vocabulary is not None:
                raise ValueError("training looks for what its captions name: give no vocabulary")
            return self.losses(batched_inputs)
        alone = all(TOKENS in one for one in batched_inputs)
        questions = [] if alone else self._asked(vocabulary)
        return [{"instances": self._detect(one, questions)} for one in batched_inputs]

    def losses(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Of a batch, in training or for validation; see :meth:`forward`."""
        images = self.preprocess(batched_inputs)
        tokens = token_batch([one[TOKENS] for one in batched_inputs]).to(self.device)
        outputs = self.network(images.tensor, tokens)
        instances = [one["instances"].to(self.device) for one in batched_inputs]
        length = tokens.ids.shape[1]
        return glip_losses(
            outputs,
            self.anchors(outputs),
            [
                last_pixels(found.gt_boxes.tensor, original_scale(one))
                for one, found in zip(batched_inputs, instances, strict=True)
            ],
            [padded_columns(found.get(TOKEN_TARGETS), length) for found in instances],
            tokens.mask,
            self.loss_settings,
        )

    losses_in_eval_mode = losses  # what validation looks for

    def network(self, images: Tensor, tokens: TokenBatch) -> HeadOutputs:
        """(N, 3, H, W) of :meth:`preprocess` and N captions -> logits, boxes, centerness."""
        return self.head(self.pyramid(images), self.text(tokens), tokens.mask)

    def text(self, tokens: TokenBatch) -> Tensor:
        """(N, L, T) of N captions, as the tower takes them."""
        return self._tuned(self.text_encoder(tokens.ids, tokens.mask))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) of :meth:`preprocess` -> (N, C, h, w) of each of the `in_features`."""
        maps = self.backbone(images)
        return [maps[level] for level in self.in_features]

    def anchors(self, outputs: HeadOutputs) -> list[Tensor]:
        """Of each level, see :func:`grid_anchors`."""
        return grid_anchors(outputs.sizes, self.device, strides=self._strides)

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Normalised, then padded with zeros to one size, a multiple of 32."""
        images = [
            (one["image"].to(self.device) - self.pixel_mean) / self.pixel_std
            for one in batched_inputs
        ]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _detect(self, one: dict[str, Any], questions: Sequence[Question]) -> Instances:
        if TOKENS in one:
            positives = one[POSITIVES]
            questions = [Question(one[TOKENS], positives, torch.arange(len(positives)))]
        if not questions:
            raise RuntimeError(
                "GLIP is asked for nothing: set MODEL.OVD.VOCABULARY, call "
                "model.set_vocabulary(vocabulary), or give images `tokens` and `positive_map`"
            )
        seen = one[ENCODED] if ENCODED in one else self.encode(one)
        size = (one["image"].shape[1], one["image"].shape[2])
        found = select(self._candidates(seen, questions, self.selection), size, self.selection)
        return original_instances(found, size, one)

    def encode(self, one: dict[str, Any]) -> list[Tensor]:
        """What no caption changes of an image: the pyramid; without fusion, the tower as well.

        An input that has it under :data:`ovd_d2.structures.ENCODED` goes through neither again.
        """
        return self.head.seen(self.pyramid(self.preprocess([one]).tensor))

    def _candidates(
        self, seen: Sequence[Tensor], questions: Sequence[Question], selection: Selection
    ) -> list[Candidates]:
        """Of an image of :meth:`encode`, several questions side by side in the tower."""
        count = self.captions_per_pass
        groups = [questions[k : k + count] for k in range(0, len(questions), count)]
        captions = [self.captions([one.ids for one in group]) for group in groups]
        found = []
        for group, outputs in zip(groups, self.head.answers(seen, captions), strict=True):
            anchors = self.anchors(outputs)
            found += [
                candidates(outputs, row, anchors, one.positives, one.labels, selection)
                for row, one in enumerate(group)
            ]
        return found

    def captions(self, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of K captions (K, L, T) and (K, L) bool, from the cache where they are known."""
        mask = token_batch(ids).mask.to(self.device)
        text = pad_sequence(self._text_cache(self.text_encoder, ids), batch_first=True)
        return self._tuned(text), mask

    def _tuned(self, text: Tensor) -> Tensor:
        """(N, L, T) as the tower takes them."""
        if self.prompt_offset is None:
            return text
        return text + self.prompt_offset[: text.shape[1]]


def _questions(chunks: Sequence[Chunk], vocabulary: Vocabulary) -> list[Question]:
    """Of chunks of a vocabulary's words; labels are its categories."""
    owners = vocabulary.owners
    return [replace(one, labels=owners[one.labels]) for one in map(question_of, chunks)]


def original_scale(one: Mapping[str, Any]) -> tuple[float, float]:
    """Pixels of the network's input per pixel of the original image, (x, y)."""
    height, width = one["image"].shape[1:]
    return width / one.get("width", width), height / one.get("height", height)


def last_pixels(boxes: Tensor, scale: tuple[float, float]) -> Tensor:
    """(M, 4) XYXY as Detectron2's -> with x2, y2 on the last pixel, of the original image."""
    return boxes - boxes.new_tensor([0, 0, *scale])


def original_instances(
    found: Candidates, size: tuple[int, int], one: Mapping[str, Any]
) -> Instances:
    """Detections as Detectron2's, in the original image.

    Args:
        found: in the network's input.
        size: (height, width) of that.
        one: the input, with `height` and `width` of the original where they differ.
    """
    height, width = one.get("height", size[0]), one.get("width", size[1])
    scale = found.boxes.new_tensor([width / size[1], height / size[0]]).repeat(2)
    boxes = Boxes(found.boxes * scale + found.boxes.new_tensor([0, 0, 1, 1]))
    boxes.clip((height, width))
    return Instances(
        (height, width), pred_boxes=boxes, scores=found.scores, pred_classes=found.labels
    )


def bert_sizes(bert: CfgNode) -> BertSizes:
    """Of `MODEL.GLIP.BERT`."""
    return BertSizes(
        width=bert.WIDTH,
        layers=bert.LAYERS,
        heads=bert.HEADS,
        hidden=bert.HIDDEN,
        vocabulary=bert.VOCABULARY,
        positions=bert.POSITIONS,
    )


def _strides(backbone: Backbone, levels: Sequence[str]) -> list[int]:
    shapes = backbone.output_shape()
    if missing := [one for one in levels if one not in shapes]:
        raise SetupError(
            [
                f"MODEL.GLIP.IN_FEATURES names {', '.join(missing)}; the backbone has "
                f"{', '.join(shapes)}: name some of these, finest first"
            ]
        )
    return [shapes[one].stride for one in levels]


def _tower_sizes(glip: CfgNode, channels: int) -> TowerSizes:
    return TowerSizes(
        channels=channels,
        levels=len(glip.IN_FEATURES),
        text_width=glip.BERT.WIDTH,
        blocks=glip.BLOCKS,
        fused=glip.FUSION,
        fusion_width=glip.FUSION_DIM,
        fusion_heads=glip.FUSION_HEADS,
        text_heads=glip.BERT.HEADS,
        text_hidden=glip.BERT.HIDDEN,
        dropout=glip.DROPOUT,
        log_scale=glip.LOG_SCALE,
        dynamic=glip.DYNAMIC_CONV,
        across_levels=glip.OFFSETS_ACROSS_LEVELS,
        gradient_checkpointing=glip.GRADIENT_CHECKPOINTING,
    )
