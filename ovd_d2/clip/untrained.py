"""open_clip models without weights: to train them, or to count what they cost."""

from __future__ import annotations

import logging
from typing import Any

import open_clip
import torch

from ovd_d2.clip.shipped import shipped_weights


def untrained_model(architecture: str, device: str = "cpu") -> Any:
    """An open_clip model with random weights, in training mode; reads and downloads no weights.

    Args:
        architecture: an open_clip model name.
        device: "meta" for a model without storage, of any size in no time.
    """
    shipped_weights(architecture)  # open_clip knows it now
    root = logging.getLogger()  # where open_clip warns of random weights, which are meant here
    root.addFilter(_is_no_warning_of_random_weights)
    try:
        with torch.device(device):
            return open_clip.create_model(
                architecture,
                device=device,
                load_weights=False,
                pretrained_image=False,
                pretrained_text=False,
            ).train()
    finally:
        root.removeFilter(_is_no_warning_of_random_weights)


def _is_no_warning_of_random_weights(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No pretrained weights loaded")
