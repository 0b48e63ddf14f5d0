"""The classifier whose weights are words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.vocabulary import Vocabulary

BACKGROUNDS = ("learned", "text")
_VOCABULARY_BUFFERS = ("text_embeddings", "is_novel")


class CLIPClassifier(nn.Module):
    """Cosine similarity to frozen text embeddings and to one background embedding.

    ViLD, section 3.2 (ViLD-text). The text embeddings are buffers, never parameters: no optimizer
    sees them. They and the novel flags are part of the state dict once there is a vocabulary, and
    loading a state dict brings the vocabulary it was saved with, whatever its length.

    Detectron2's own checkpointer leaves out tensors of another shape than the model's. So it loads
    a vocabulary of any length into a model that has none yet, and into one that has keeps the
    model's if the lengths differ. It does not know the names: these travel in the checkpoints of
    :class:`ovd_d2.engine.checkpoint.SafeCheckpointer`, which loads any length into any model.

    Attributes:
        vocabulary: names and all, as set; None before, or where a state dict brought another.
        text_embeddings: (C, D) float32 unit rows.
        is_novel: (C,) bool.
        background: (D,), normalised in use; a parameter where it is learned.
    """

    text_embeddings: Tensor
    is_novel: Tensor
    background: Tensor

    def __init__(
        self,
        *,
        embedding_dim: int,
        num_classes: int,
        temperature: float,
        test_temperature: float | None = None,
        background: str = "learned",
    ) -> None:
        """
        Args:
            embedding_dim: D, the teacher's width.
            num_classes: C, until `set_vocabulary` brings another.
            temperature: divides the cosine similarity.
            test_temperature: takes its place in eval mode; None: the same.
            background: "learned" (the paper), or "text": the vocabulary's frozen embedding of the
                word "background".
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
            self.register_buffer("background", initial)
        self.register_buffer("text_embeddings", torch.zeros(num_classes, embedding_dim))
        self.register_buffer("is_novel", torch.zeros(num_classes, dtype=torch.bool))
        self._has_vocabulary = False
        self.vocabulary: Vocabulary | None = None

    @property
    def temperature(self) -> float:
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
        if vocabulary.embedding_dim != self.embedding_dim:
            raise ValueError(
                f"the vocabulary's embeddings are {vocabulary.embedding_dim} wide, the model's "
                f"MODEL.OVD.EMBEDDING_DIM is {self.embedding_dim}: build the vocabulary with the "
                "model's teacher, or set the key"
            )
        if not self.learns_background:
            self.background.copy_(_background_of(vocabulary))
        self._resize(len(vocabulary))
        self.text_embeddings.copy_(vocabulary.embeddings)
        self.is_novel.copy_(vocabulary.novel)
        self._has_vocabulary = True
        self.vocabulary = vocabulary

    def forget_vocabulary(self) -> None:
        """Makes room for the vocabulary of a state dict; a learned background stays."""
        self._has_vocabulary = False
        self.vocabulary = None

    def forward(self, region_embeddings: Tensor) -> Tensor:
        """
        Args:
            region_embeddings: (N, D) unit rows.

        Returns:
            (N, C + 1) float32 logits: cosine similarity over temperature, background last. Also
            under autocast: over a temperature of 0.01, half precision is off by tenths.

        Raises:
            RuntimeError: no vocabulary has been set or loaded.
        """
        if not self._has_vocabulary:
            raise RuntimeError(
                "the classifier has no vocabulary yet: set MODEL.OVD.VOCABULARY, load a "
                "checkpoint, or call model.set_vocabulary(vocabulary)"
            )
        background = F.normalize(self.background, dim=0)[None]  # (1, D)
        weights = torch.cat([self.text_embeddings, background])  # (C + 1, D)
        with torch.autocast(weights.device.type, enabled=False):
            similarity = region_embeddings.to(weights) @ weights.t()  # (N, C + 1)
            return similarity.div_(self.temperature)  # in place: with 20,000 names 80 MB less

    def _resize(self, num_classes: int) -> None:
        # New buffers (not in-place resizing): the old ones may be shared with a state dict.
        embeddings, novel = self.text_embeddings, self.is_novel
        self.text_embeddings = embeddings.new_zeros(num_classes, self.embedding_dim)
        self.is_novel = novel.new_zeros(num_classes)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self._has_vocabulary:  # zeros of a length that says nothing
            for name in _VOCABULARY_BUFFERS:
                del destination[prefix + name]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        keys = [prefix + name for name in _VOCABULARY_BUFFERS]
        stored = [state_dict[key] for key in keys if key in state_dict]
        if len({len(tensor) for tensor in stored}) == 1 and len(stored) == len(keys):
            self._make_room_for(stored[0])
        else:  # embeddings without a flag each are no vocabulary
            for key in keys:
                state_dict.pop(key, None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args
        )
        # A state dict without a vocabulary leaves the one there is.
        missing_keys[:] = [key for key in missing_keys if key not in keys]

    def _make_room_for(self, stored: Tensor) -> None:
        if stored.shape[1:] != self.text_embeddings.shape[1:]:
            return  # the base class says so
        self._resize(len(stored))
        self._has_vocabulary = bool(stored.any())
        known = self.vocabulary
        if known is not None and not torch.equal(known.embeddings, stored.cpu().float()):
            self.vocabulary = None


def _background_of(vocabulary: Vocabulary) -> Tensor:
    if vocabulary.background is None:
        raise ValueError(
            'MODEL.OVD.BACKGROUND "text" needs a vocabulary with an embedding of "background", '
            "this one has none: build it again with tools/build_vocabulary.py"
        )
    return vocabulary.background
