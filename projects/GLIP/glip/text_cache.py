"""What the text encoder makes of captions, kept from image to image."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovd_d2.projects.glip.text import TextEncoder

LIMIT = 512  # captions; at most 400 MB of a bert-base


class TextCache:
    """Embeddings of captions by their tokens, for as long as the encoder's weights stay.

    Weights may be changed in place, by an optimizer or `load_state_dict`, or moved to another
    device or type. (A write through `.data` alone goes unseen: call :meth:`clear` after it.)

    Threads can share it. A copy, pickled or deep, is empty: it belongs to the weights of a copy.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        """
        Args:
            limit: captions that are kept, those that were asked for last.
        """
        self._limit = limit
        self._found: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._made_by: object = None
        self._lock = threading.Lock()  # of entries that come, move and go

    def __reduce__(self) -> tuple[type[TextCache], tuple[int]]:
        return TextCache, (self._limit,)

    def __len__(self) -> int:
        return len(self._found)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._found.clear()

    def __call__(self, encoder: TextEncoder, captions: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            encoder: in eval mode.
            captions: (L,) int64 tokens each.

        Returns:
            (L, width) each, without a graph. A caption is encoded alone: its embeddings do not
            depend on what else is asked for.
        """
        with self._lock:
            if (maker := _state(encoder)) != self._made_by:
                self._found.clear()
                self._made_by = maker
            found = [self._embeddings(encoder, one) for one in captions]
            while len(self._found) > self._limit:
                self._found.popitem(last=False)
        return found

    @torch.no_grad()
    def _embeddings(self, encoder: TextEncoder, ids: Tensor) -> Tensor:
        key = tuple(ids.tolist())
        if key not in self._found:
            ids = ids.to(next(encoder.parameters()).device)[None]
            self._found[key] = encoder(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        self._found.move_to_end(key)
        return self._found[key]


def _state(encoder: nn.Module) -> object:
    """Equal as long as the encoder gives the same embeddings."""
    autocast = tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return autocast, tuple((one.data_ptr(), one._version) for one in encoder.parameters())
