"""A vocabulary that travels whole, names included, in the state dict of the module with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.vocabulary import Vocabulary

KEY = "vocabulary"  # of the state dict


class VocabularyHolder(nn.Module):
    """A state dict brings it the vocabulary that it does not have.

    One that was given stays, so the names that a config asks for win over a checkpoint's, with
    Detectron2's own checkpointer, too.

    Attributes:
        vocabulary: names and all; None where none was given or loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary: Vocabulary | None = None
        self._was_given = False

    def _take_loaded(self, vocabulary: Vocabulary) -> None:
        """Holds that of a state dict."""
        raise NotImplementedError

    def forget_loaded_vocabulary(self) -> None:
        """Makes room for that of another state dict; one that was given stays."""
        if not self._was_given:
            self.vocabulary = None

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.vocabulary is not None:
            destination[prefix + KEY] = _packed(self.vocabulary)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.pop(prefix + KEY, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if stored is not None and not self._was_given:
            self._take_loaded(_unpacked(stored, prefix + KEY))


def _packed(vocabulary: Vocabulary) -> Tensor:
    """(bytes,) uint8, as an entry of a state dict."""
    return torch.frombuffer(bytearray(vocabulary.to_bytes()), dtype=torch.uint8)


def _unpacked(stored: Any, key: str) -> Vocabulary:
    """What :func:`_packed` made.

    Args:
        stored: the entry.
        key: its name, for the message.

    Raises:
        ValueError: it is damaged, or no vocabulary.
    """
    try:
        return Vocabulary.from_bytes(stored.cpu().numpy().tobytes())
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"its vocabulary ({key}) cannot be read: {error}. Copy the checkpoint again, or name "
            "the vocabulary that it was trained with by MODEL.OVD.VOCABULARY"
        ) from error
