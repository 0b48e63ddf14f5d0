"""From names, phrases and captions to tokens, and from the scores of tokens to those of phrases."""

from ovd_d2.projects.glip.prompts.spans import (
    Prompt,
    padded_columns,
    phrase_scores,
    positive_map,
    token_targets,
)
from ovd_d2.projects.glip.prompts.tokenizer import (
    MAX_TOKENS,
    Encoding,
    LazyTokenizer,
    TokenBatch,
    Tokenizer,
    load_tokenizer,
    token_batch,
    truncated,
)

__all__ = [
    "MAX_TOKENS",
    "Encoding",
    "LazyTokenizer",
    "Prompt",
    "TokenBatch",
    "Tokenizer",
    "load_tokenizer",
    "padded_columns",
    "phrase_scores",
    "positive_map",
    "token_batch",
    "token_targets",
    "truncated",
]
