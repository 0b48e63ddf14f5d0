"""A small BERT that knows what the words of Pictograms mean, in place of a large one.

GLIP begins with a language model. For the few words of Pictograms there is none, and one that
begins with noise knows nothing of a name that it has no box of. This one has read phrases alone, no
image: the tokens of a phrase, wherever it stands in a caption, learn to be the teacher's text
embedding of it on average. `projects/GLIP/tools/train_pictogram_bert.py` writes the folder that the
package has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import build_vocabulary
from ovd_d2.pictograms.dataset import COLOURS, GLYPHS
from ovd_d2.pictograms.dataset.captions import caption_of
from ovd_d2.projects.glip.prompts.detection import names_prompt
from ovd_d2.projects.glip.prompts.spans import Span, positive_map
from ovd_d2.projects.glip.prompts.tokenizer import Tokenizer
from ovd_d2.projects.glip.text import BertSizes, TextEncoder
from ovd_d2.vocabulary import Categories

SIZES = BertSizes(width=64, layers=2, heads=4, hidden=128, vocabulary=242, positions=256)
_MOST_NAMES, _MOST_OBJECTS = 40, 8  # of a caption
_CAPTIONS = 16  # of a step


class Meanings:
    """Text embeddings of all glyphs, alone and in each colour, without what all have in common.

    Attributes:
        phrases: their words.
        rows: (n, D) float32 unit embeddings.
    """

    def __init__(self, teacher: CLIPTeacher) -> None:
        """
        Args:
            teacher: has read all of these words.
        """
        self.phrases = [one.name for one in GLYPHS]
        self.phrases += [f"{colour} {one.name}" for colour in COLOURS for one in GLYPHS]
        categories = Categories(self.phrases, [False] * len(self.phrases))
        rows = build_vocabulary(categories, teacher, prompts="single").embeddings
        self.rows = F.normalize(rows - rows.mean(dim=0), dim=1)
        self._places = {one: k for k, one in enumerate(self.phrases)}

    def caption(self, draw: random.Random) -> tuple[str, list[tuple[Span, ...]], Tensor]:
        """A list of names or a scene's caption: text, the spans of K phrases, (K, D) meanings."""
        if draw.random() < 0.5:
            places = draw.sample(range(len(self.phrases)), draw.randint(1, _MOST_NAMES))
            prompt = names_prompt([self.phrases[k] for k in places])
            return prompt.caption, list(prompt.spans), self.rows[places]
        drawn = [
            (k, draw.choice(list(COLOURS)), GLYPHS[k].name)
            for k in draw.choices(range(len(GLYPHS)), k=draw.randint(1, _MOST_OBJECTS))
        ]
        caption, found = caption_of(drawn)
        shown = [drawn[one.objects[0]] for one in found]
        places = [self._places[f"{colour} {glyph}"] for _, colour, glyph in shown]
        return caption, [(one.span,) for one in found], self.rows[places]


def train_words(
    teacher: CLIPTeacher, tokenizer: Tokenizer, *, steps: int, seed: int = 0, rate: float = 3e-3
) -> TextEncoder:
    """A text encoder whose tokens mean what the teacher says.

    Args:
        teacher: its embeddings are as wide as the encoder's.
        tokenizer: of Pictograms.
        steps: of 16 captions.
        seed: of weights and captions.
        rate: the highest learning rate.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)
    meanings, encoder = Meanings(teacher), TextEncoder(SIZES, dropout=0.0)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    bar = trange(steps, desc="words")
    for step in bar:
        captions = [meanings.caption(draw) for _ in range(_CAPTIONS)]
        found = read(encoder, tokenizer, [(text, spans) for text, spans, _ in captions])
        wanted = torch.cat([rows for *_, rows in captions])
        loss = (1 - F.cosine_similarity(found, wanted)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return encoder.eval()


def read(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    captions: Sequence[tuple[str, Sequence[Sequence[Span]]]],
) -> Tensor:
    """The mean over the tokens of each phrase of some captions.

    Args:
        encoder: the network.
        tokenizer: of the captions.
        captions: texts, of each the spans of its phrases.

    Returns:
        (K, width), the phrases of all captions after one another.
    """
    encoded = [tokenizer.encode(text) for text, _ in captions]
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one.ids) for one in encoded], batch_first=True
    )
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(one)] for one in encoded])
    tokens = encoder(ids, mask)
    maps = [
        positive_map(spans, one.offsets, ids.shape[1])
        for (_, spans), one in zip(captions, encoded, strict=True)
    ]
    return torch.cat([one @ rows for one, rows in zip(maps, tokens, strict=True)])


@torch.no_grad()
def words_known(encoder: TextEncoder, tokenizer: Tokenizer, teacher: CLIPTeacher) -> float:
    """Share of glyphs whose name, in a list of twenty, is nearest to its own meaning."""
    meanings = Meanings(teacher)
    names = [one.name for one in GLYPHS]
    prompts = [names_prompt(names[k : k + 20]) for k in range(0, len(names), 20)]
    rows = read(encoder, tokenizer, [(one.caption, one.spans) for one in prompts])
    nearest = (F.normalize(rows, dim=1) @ meanings.rows[: len(names)].T).argmax(dim=1)
    return float((nearest == torch.arange(len(names))).double().mean())
