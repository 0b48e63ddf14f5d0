"""The classifier whose weights are words."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.modeling.vocabulary_holder import VocabularyHolder
from ovd_d2.scoring import best_of_words
from ovd_d2.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

BACKGROUNDS = ("learned", "text")


class Words(NamedTuple):
    """A vocabulary of C categories as tensors on the device of a model.

    Attributes:
        embeddings: (W, D) float32 unit rows, one per word: C names, then the synonyms.
        novel: (C,) bool.
        background: (D,) float32; None where the classifier learns its own.
        owners: (W,) int64, which category each word is; None: W is C.
    """

    embeddings: Tensor
    novel: Tensor
    background: Tensor | None
    owners: Tensor | None = None

    def best(self, similarities: Tensor) -> Tensor:
        """(N, W + B) to words and B others -> (N, C + B): that to each category's best word."""
        if self.owners is None:
            return similarities
        of_words, others = similarities.tensor_split([len(self.owners)], dim=1)
        best = best_of_words(of_words, self.owners, len(self.novel))
        return torch.cat([best, others], dim=1)


class CLIPClassifier(VocabularyHolder):
    """Cosine similarity to frozen text embeddings and to one background embedding.

    ViLD, section 3.2 (ViLD-text). The text embeddings are buffers, never parameters: no optimizer
    sees them. A vocabulary of another teacher in a state dict is left out with a warning.

    Attributes:
        text_embeddings: (C, D) float32 unit rows, of the names.
        synonym_embeddings: (S, D) of their synonyms.
        owners: (C + S,) int64, see :class:`Words`.
        novel: (C,) bool.
        background: (D,), normalised in use; a parameter where it is learned.
    """

    text_embeddings: Tensor
    synonym_embeddings: Tensor
    owners: Tensor
    novel: Tensor
    background: Tensor

    def __init__(
        self,
        *,
        embedding_dim: int,
        num_classes: int,
        temperature: float,
        test_temperature: float | None = None,
        background: str = "learned",
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """
        Args:
            embedding_dim: D, the teacher's width.
            num_classes: C while there is no vocabulary.
            temperature: divides the cosine similarity.
            test_temperature: takes its place in eval mode; None: the same.
            background: "learned" (the paper), or "text": the vocabulary's frozen embedding of the
                word "background".
            vocabulary: what to look for; None: `set_vocabulary` or a state dict brings it.
        """
        super().__init__()
        if test_temperature is None:
            test_temperature = temperature
        if temperature <= 0 or test_temperature <= 0:
            raise ValueError(
                f"temperatures must be positive, got {temperature} and {test_temperature}"
            )
        if background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {BACKGROUNDS}, got '{background}'")
        self._temperatures = {True: temperature, False: test_temperature}
        self.embedding_dim = embedding_dim
        initial = torch.empty(embedding_dim).normal_(std=0.01)
        if background == "learned":
            self.background = nn.Parameter(initial)
        else:
            self.register_buffer("background", initial, persistent=False)
        embeddings = torch.zeros(num_classes, embedding_dim)
        self.register_buffer("text_embeddings", embeddings, persistent=False)
        flags = torch.zeros(num_classes, dtype=torch.bool)
        self.register_buffer("novel", flags, persistent=False)
        self.register_buffer("synonym_embeddings", embeddings[:0], persistent=False)
        self.register_buffer("owners", torch.arange(num_classes), persistent=False)
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)

    @property
    def temperature(self) -> float | Tensor:
        """Divides cosine similarities, in the mode (training or eval) the module is in."""
        return self._temperatures[self.training]

    @property
    def learns_background(self) -> bool:
        return isinstance(self.background, nn.Parameter)

    @property
    def num_classes(self) -> int:
        return self.text_embeddings.shape[0]

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes the names' embeddings and novel flags, on the device the classifier is on."""
        self._take(vocabulary)
        self._was_given = True

    @property
    def words(self) -> Words:
        """Of the vocabulary that the classifier holds.

        Raises:
            RuntimeError: none has been given or loaded.
        """
        if self.vocabulary is None:
            raise RuntimeError(
                "the classifier has no vocabulary yet: set MODEL.OVD.VOCABULARY, load a "
                "checkpoint, or call model.set_vocabulary(vocabulary)"
            )
        background = None if self.learns_background else self.background
        if not len(self.synonym_embeddings):
            return Words(self.text_embeddings, self.novel, background)
        rows = torch.cat([self.text_embeddings, self.synonym_embeddings])
        return Words(rows, self.novel, background, self.owners)

    def words_of(self, vocabulary: Vocabulary) -> Words:
        """Of another vocabulary, for one call: what the classifier holds does not change."""
        self._check_width(vocabulary)
        device = self.text_embeddings.device
        background = None if self.learns_background else _background_of(vocabulary).to(device)
        names, novel = vocabulary.embeddings.to(device), vocabulary.novel.to(device)
        if not any(vocabulary.synonyms):
            return Words(names, novel, background)
        rows = torch.cat([names, vocabulary.synonym_embeddings.to(device)])
        return Words(rows, novel, background, vocabulary.owners.to(device))

    def _check_width(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.embedding_dim:
            raise ValueError(
                "the vocabulary has words alone, but this detector compares text embeddings: make "
                "a vocabulary with tools/build_vocabulary.py"
            )
        if vocabulary.embedding_dim != self.embedding_dim:
            raise ValueError(
                f"the vocabulary's embeddings are {vocabulary.embedding_dim} wide, the model's "
                f"MODEL.OVD.EMBEDDING_DIM (LazyConfig: embedding_dim) is {self.embedding_dim}: use "
                "one teacher for both"
            )

    def _take(self, vocabulary: Vocabulary) -> None:
        self._check_width(vocabulary)
        if not self.learns_background:
            self.background.copy_(_background_of(vocabulary))
        self._resize(len(vocabulary))
        self.text_embeddings.copy_(vocabulary.embeddings)
        self.synonym_embeddings = vocabulary.synonym_embeddings.to(self.text_embeddings)
        self.owners = vocabulary.owners.to(self.owners.device)
        self.novel.copy_(vocabulary.novel)
        self.vocabulary = vocabulary

    def _take_loaded(self, vocabulary: Vocabulary) -> None:
        try:
            self._take(vocabulary)
        except ValueError as error:  # another teacher's: of use to what needs no names
            logger.warning("The vocabulary of the checkpoint is left out: %s", error)

    def forward(self, region_embeddings: Tensor, words: Words | None = None) -> Tensor:
        """
        Args:
            region_embeddings: (N, D) unit rows.
            words: what to look for in this call; None: the classifier's own.

        Returns:
            (N, C + 1) float32 logits: cosine similarity over temperature, background last. Also
            under autocast: over a temperature of 0.01, half precision is off by tenths.

        Raises:
            RuntimeError: no vocabulary has been set or loaded.
        """
        words = self.words if words is None else words
        background = self.background if words.background is None else words.background
        weights = torch.cat([words.embeddings, F.normalize(background, dim=0)[None]])  # (C + 1, D)
        with torch.autocast(weights.device.type, enabled=False):
            similarity = region_embeddings.to(weights) @ weights.t()  # (N, C + 1)
            return words.best(similarity.div_(self.temperature))  # in place: 80 MB less of 20,000

    def _resize(self, num_classes: int) -> None:
        # New buffers (not in-place resizing): the old ones may be shared with a state dict.
        embeddings, novel = self.text_embeddings, self.novel
        self.text_embeddings = embeddings.new_zeros(num_classes, self.embedding_dim)
        self.novel = novel.new_zeros(num_classes)


def _background_of(vocabulary: Vocabulary) -> Tensor:
    if vocabulary.background is None:
        raise ValueError(
            'MODEL.OVD.BACKGROUND "text" needs a vocabulary with an embedding of "background", '
            "this one has none: build it again with tools/build_vocabulary.py"
        )
    return vocabulary.background
