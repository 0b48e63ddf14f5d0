"""A vocabulary of word pieces that is small enough to read."""

from __future__ import annotations

from ovd_d2.projects.glip.prompts.tokenizer import WordPieces

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "-", "'"),
    *("a", "an", "the", "two", "of", "on", "and", "near", "many", "red", "blue", "green", "old"),
    *("cat", "dog", "cup", "bird", "anchor", "umbrella", "snow", "man", "traffic", "light", "sofa"),
    *("cafe", "tasse", "##s", "##man", "##light", "##flake", "bus", "horse", "chair", "table"),
)


def small_tokenizer() -> WordPieces:
    """ "snowman" is two tokens, "snowflakes" three, and what it does not know is one."""
    return WordPieces.from_vocabulary(WORDS)
