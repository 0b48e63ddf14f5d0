"""The text encoder: BERT of the `transformers` library, without its pooler."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers  # loads its BERT when it is first named, which takes a second
from torch import Tensor, nn

from ovd_d2.errors import SetupError

KEY = "MODEL.GLIP.BERT"
# Folders that come with this package, by name.
SHIPPED = {"pictograms": Path(__file__).parent / "pictogram_bert"}


@dataclass(frozen=True)
class BertSizes:
    """The defaults are bert-base's.

    Attributes:
        width: of the embeddings of tokens.
        layers, heads: how many.
        hidden: width between the two linear layers of a block.
        vocabulary: tokens.
        positions: tokens of a text, at most.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 30522
    positions: int = 512

    def config(self, dropout: float) -> transformers.BertConfig:
        """As `transformers` wants it."""
        return transformers.BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.hidden,
            max_position_embeddings=self.positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )


class TextEncoder(nn.Module):
    """Tokens to embeddings that know their context.

    Attributes:
        bert: the network.
        width: of an embedding.
    """

    def __init__(
        self,
        sizes: BertSizes,
        *,
        pretrained: str = "",
        until_loaded: bool = False,
        dropout: float = 0.1,
        gradient_checkpointing: bool = False,
    ) -> None:
        """
        Args:
            sizes: of the network.
            pretrained: a folder in the layout of `transformers`, "pictograms" (small, of the words
                of that data set), or a name of the hub of `transformers`; "": random weights.
            until_loaded: weights are about to be loaded (`load_state_dict`): `pretrained` is looked
                at then, and only if they are of a backbone alone.
            dropout: of probabilities and of the outputs of each layer, in training.
            gradient_checkpointing: keep no activations of the layers.

        Raises:
            SetupError: the weights cannot be loaded, or are of other sizes.
        """
        super().__init__()
        config = sizes.config(dropout)
        at_once = pretrained and not until_loaded
        self.bert = pretrained_bert(pretrained, config) if at_once else _untrained(config)
        if pretrained and until_loaded:
            self.register_load_state_dict_post_hook(partial(_fill_in, pretrained))
        self.width = sizes.width
        if gradient_checkpointing:
            self.bert.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            ids: (N, L) int64 tokens.
            mask: (N, L) bool, False where padded.

        Returns:
            (N, L, width); those of padded tokens mean nothing.

        Raises:
            ValueError: L is more than the network has positions.
        """
        limit = self.bert.config.max_position_embeddings
        if ids.shape[1] > limit:
            raise ValueError(f"{ids.shape[1]} tokens, but {KEY} has {limit} positions")
        found = self.bert(input_ids=ids, attention_mask=mask.to(torch.int64))
        return found.last_hidden_state


def _fill_in(pretrained: str, encoder: nn.Module, found: Any) -> None:
    """The hook of `load_state_dict`: where a state dict has nothing of the text encoder."""
    assert isinstance(encoder, TextEncoder)
    own = [f".{name}" for name in encoder.state_dict()]
    missing = [key for key in found.missing_keys if f".{key}".endswith(tuple(own))]
    if len(missing) < len(own):
        return
    loaded = pretrained_bert(pretrained, encoder.bert.config)
    encoder.bert.load_state_dict(loaded.state_dict())
    for key in missing:
        found.missing_keys.remove(key)


def _untrained(config: transformers.BertConfig) -> transformers.BertModel:
    return transformers.BertModel(config, add_pooling_layer=False)


def pretrained_bert(name: str, config: transformers.BertConfig) -> transformers.BertModel:
    """BERT with its weights; arguments and errors as of :class:`TextEncoder`."""
    where = str(SHIPPED.get(name, name))
    try:
        # other sizes than the config's are an error of transformers, keys that are missing are not
        loaded: Any = transformers.BertModel.from_pretrained(
            where, config=config, add_pooling_layer=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SetupError(
            [
                f"{KEY}.PRETRAINED '{name}': {error}; name a folder with a BERT of the sizes in "
                f"{KEY}, or a name of the Hugging Face hub"
            ]
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise SetupError([f"{KEY}.PRETRAINED '{name}' lacks {len(missing)} weights: {missing[0]}"])
    return model
