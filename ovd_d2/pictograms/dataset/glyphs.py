"""The glyph list of the Pictograms data set and the categories made from it.

Every glyph is a character of DejaVu Sans, the font that matplotlib installs. The list keeps what
stays recognisable in one flat colour, at about 22 px and rotated by up to 30 degrees: no letters,
no pairs that differ only by fill or by rotation. Names follow the Unicode character names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .colours import COLOURS


@dataclass(frozen=True)
class Glyph:
    """One pictogram: a font character under a plain English name."""

    name: str
    codepoint: int
    definition: str

    @property
    def character(self) -> str:
        return chr(self.codepoint)


@dataclass(frozen=True)
class PictogramCategory:
    """A detection category: a glyph in any colour, or a glyph in one given colour.

    Attributes:
        name: what goes into prompts and captions, e.g. "anchor" or "red anchor".
        glyph: the shape.
        colour: a key of COLOURS, or None when the category is drawn in every colour.
        definition: one line of plain English.
        synset: an identifier in the form of a WordNet synset ("anchor.p.01"); the part of speech
            "p" (pictogram) says that it is not one of WordNet's.
    """

    name: str
    glyph: Glyph
    colour: str | None
    definition: str
    synset: str


# (name, code point, definition). The order is part of the data set: append, never reorder.
_GLYPH_TABLE: tuple[tuple[str, int, str], ...] = (
    ("anchor", 0x2693, "a ship's anchor with two flukes and a ring"),
    ("umbrella", 0x2602, "an open umbrella with a curved handle"),
    ("skull and crossbones", 0x2620, "a skull over two crossed bones"),
    ("airplane", 0x2708, "an airplane seen from above, nose to the right"),
    ("chess knight", 0x265E, "a chess piece in the shape of a horse's head"),
    ("sun", 0x2600, "a disc with separate rays around it"),
    ("cloud", 0x2601, "a puffy cloud with a flat base"),
    ("snowman", 0x2603, "a snowman in a hat among falling snow"),
    ("star", 0x2605, "a filled star with five points"),
    ("telephone", 0x260E, "a desk telephone with a rotary dial"),
    ("hot beverage", 0x2615, "a steaming cup on a saucer"),
    ("pointing hand", 0x261B, "a fist with the index finger pointing to the right"),
    ("radioactive sign", 0x2622, "three blades around a dot in a disc"),
    ("biohazard sign", 0x2623, "three open crescents joined around a ring"),
    ("caduceus", 0x2624, "a winged staff with two snakes wound about it"),
    ("ankh", 0x2625, "a cross with a loop for its upper arm"),
    ("star and crescent", 0x262A, "a crescent that opens towards a small star"),
    ("peace symbol", 0x262E, "a circle with a vertical line and two slanting ones"),
    ("yin yang", 0x262F, "a disc parted by a wave into a dark and a light half"),
    ("wheel of dharma", 0x2638, "a wheel with eight spokes that reach past the rim"),
    ("smiling face", 0x263B, "a filled round face with a smile"),
    ("crescent moon", 0x263E, "the outline of a crescent that opens to the right"),
    ("chess king", 0x265A, "a chess piece with a crown and a small cross"),
    ("chess queen", 0x265B, "a chess piece with a crown of balls on spikes"),
    ("chess rook", 0x265C, "a chess piece in the shape of a castle tower"),
    ("chess bishop", 0x265D, "a chess piece with a mitre that bears a cross"),
    ("chess pawn", 0x265F, "a chess piece with a ball for its head"),
    ("spade suit", 0x2660, "the spade of playing cards, a leaf on a stem"),
    ("heart suit", 0x2665, "the heart of playing cards"),
    ("diamond suit", 0x2666, "the diamond of playing cards, an upright rhombus"),
    ("club suit", 0x2663, "the club of playing cards, three balls on a stem"),
    ("hot springs", 0x2668, "three wisps of steam over a basin"),
    ("eighth note", 0x266A, "a music note with one flag"),
    ("beamed notes", 0x266B, "two music notes joined by a beam"),
    ("sharp sign", 0x266F, "the music sharp, two upright and two slanting lines"),
    ("recycling symbol", 0x267B, "three folded arrows in a triangle"),
    ("infinity sign", 0x267E, "a lying figure eight in a circle"),
    ("wheelchair symbol", 0x267F, "a person in a wheelchair"),
    ("die", 0x2684, "the face of a die with five spots"),
    ("draughts king", 0x26C3, "a stack of two draughts pieces"),
    ("flag", 0x2691, "a filled flag on a pole"),
    ("hammer and pick", 0x2692, "a hammer crossed with a pick"),
    ("crossed swords", 0x2694, "two swords with crossed blades"),
    ("scales", 0x2696, "a pair of balance scales"),
    ("alembic", 0x2697, "a distilling flask on a stand"),
    ("gear", 0x2699, "a toothed wheel with an open hub"),
    ("atom symbol", 0x269B, "three orbits around a nucleus"),
    ("fleur-de-lis", 0x269C, "a stylised lily with three petals and a band"),
    ("warning sign", 0x26A0, "a triangle with an exclamation mark inside"),
    ("high voltage sign", 0x26A1, "a jagged lightning bolt"),
    ("coffin", 0x26B0, "the outline of a lying coffin"),
    ("funeral urn", 0x26B1, "a vase with a narrow neck and foot"),
    ("scissors", 0x2702, "open scissors, blades to the right"),
    ("tape drive", 0x2707, "a tape reel with three openings"),
    ("envelope", 0x2709, "a closed envelope, its flap towards the reader"),
    ("victory hand", 0x270C, "a hand with two fingers raised in a V"),
    ("writing hand", 0x270D, "a hand that writes with a pen"),
    ("pencil", 0x270F, "a sharpened pencil, point to the right"),
    ("fountain pen nib", 0x2712, "the nib of a fountain pen"),
    ("check mark", 0x2714, "a heavy tick"),
    ("ballot cross", 0x2718, "a heavy X drawn with a brush"),
    ("maltese cross", 0x2720, "a cross of four arms that widen outwards"),
    ("star of david", 0x2721, "two interlaced triangle outlines"),
    ("four pointed star", 0x2726, "a filled star with four points"),
    ("circled star", 0x272A, "a light star in a filled disc"),
    ("florette", 0x273F, "a flower with five filled petals around an open centre"),
    ("snowflake", 0x2744, "a snow crystal with six branched arms"),
    ("twelve pointed star", 0x2739, "a filled burst with twelve short points"),
    ("heart exclamation mark", 0x2763, "a heart above a ball"),
    ("floral heart", 0x2766, "a heart-shaped leaf on a curling vine"),
    ("bullseye", 0x25CE, "two concentric circles"),
    ("feathered arrow", 0x27B8, "an arrow with a feathered tail, pointing right"),
    ("keyboard", 0x2328, "a computer keyboard with rows of keys"),
    ("house", 0x2302, "the outline of a house with a pitched roof"),
    ("place of interest sign", 0x2318, "a square with a loop at every corner"),
    ("eject symbol", 0x23CF, "a triangle above a bar"),
    ("mouse face", 0x1F42D, "the face of a mouse with round ears"),
    ("cow face", 0x1F42E, "the face of a cow with horns"),
    ("cat face", 0x1F431, "the face of a cat with whiskers"),
    ("monkey face", 0x1F435, "the face of a monkey"),
    # Above the default 80.
    ("domino tile", 0x1F093, "a standing domino with six spots on either half"),
    ("joker card", 0x1F0CF, "a playing card that bears a star"),
    ("four diamonds", 0x2756, "four small diamonds that form a larger one"),
    ("comet", 0x2604, "a comet with a dotted tail"),
    ("face with sunglasses", 0x1F60E, "a round face that wears dark glasses"),
    ("screaming face", 0x1F631, "a frightened face held between two hands"),
    ("face with medical mask", 0x1F637, "a round face behind a medical mask"),
    ("smiling face with horns", 0x1F608, "a grinning face with two horns"),
    ("neptune", 0x2646, "the planet sign of Neptune, a trident"),
    ("jupiter", 0x2643, "the planet sign of Jupiter"),
    ("uranus", 0x2645, "the planet sign of Uranus"),
    ("aries", 0x2648, "the zodiac sign of the ram, two curling horns"),
    ("taurus", 0x2649, "the zodiac sign of the bull, a ring under two horns"),
    ("gemini", 0x264A, "the zodiac sign of the twins, two pillars"),
    ("cancer", 0x264B, "the zodiac sign of the crab, two curls"),
    ("libra", 0x264E, "the zodiac sign of the balance, a bar under a raised one"),
    ("aquarius", 0x2652, "the zodiac sign of the water bearer, two waves"),
    ("pisces", 0x2653, "the zodiac sign of the fish, two arcs and a bar"),
    ("male sign", 0x2642, "a ring with an arrow to the upper right"),
    ("female sign", 0x2640, "a ring above a cross"),
    ("benzene ring", 0x23E3, "a circle in a hexagon"),
    ("return symbol", 0x23CE, "an outlined arrow that turns down and to the left"),
    ("circled arrow", 0x27B2, "an arrow in an open circle"),
    ("quotation mark", 0x275E, "a pair of heavy commas"),
)

GLYPHS: tuple[Glyph, ...] = tuple(Glyph(*row) for row in _GLYPH_TABLE)


@lru_cache(maxsize=1)
def font_path() -> Path:
    """Path of DejaVuSans.ttf in matplotlib's data folder.

    Raises:
        FileNotFoundError: matplotlib was installed without its fonts.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the font of the pictograms is missing; "
            "reinstall matplotlib from its wheel (pip install --force-reinstall matplotlib)"
        )
    return path


def max_categories() -> int:
    """How many categories `build_categories` can make: every glyph in every colour."""
    return len(GLYPHS) * len(COLOURS)


def build_categories(count: int = 80) -> list[PictogramCategory]:
    """Make `count` categories, in an order that depends on `count` alone.

    Up to len(GLYPHS) a category is a glyph in any colour ("anchor"). Above that every category is
    a glyph in one colour ("red anchor"); neighbours in the list differ in glyph and in colour, and
    any len(GLYPHS) consecutive ones are different glyphs.

    Raises:
        ValueError: count is not in 1..max_categories().
    """
    if not 1 <= count <= max_categories():
        raise ValueError(f"categories: expected 1..{max_categories()}, got {count}")
    if count <= len(GLYPHS):
        return [_category(glyph, None) for glyph in GLYPHS[:count]]
    colours = list(COLOURS)
    pairs = []
    for index in range(count):
        turn, position = divmod(index, len(GLYPHS))
        pairs.append((GLYPHS[position], colours[(turn + position) % len(colours)]))
    return [_category(glyph, colour) for glyph, colour in pairs]


def _category(glyph: Glyph, colour: str | None) -> PictogramCategory:
    name = glyph.name if colour is None else f"{colour} {glyph.name}"
    definition = glyph.definition if colour is None else f"{glyph.definition}, in {colour}"
    return PictogramCategory(
        name=name,
        glyph=glyph,
        colour=colour,
        definition=definition,
        synset=f"{name.replace(' ', '_')}.p.01",
    )
