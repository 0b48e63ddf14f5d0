"""Pictograms: the data set that is drawn by code, from a font, for a seed."""

from .colours import COLOURS
from .generate import GENERATOR_VERSION, DifferentArgumentsError, check_version, prepare
from .glyphs import GLYPHS, Glyph, PictogramCategory, build_categories, max_categories
from .plan import frequency_of, frequency_thresholds
from .render import glyph_mask, paste_glyph, random_crop_sample
from .textures import textured_background
from .tuning import TuningArguments, prepare_tuning

__all__ = [
    "COLOURS",
    "GENERATOR_VERSION",
    "GLYPHS",
    "DifferentArgumentsError",
    "Glyph",
    "PictogramCategory",
    "TuningArguments",
    "build_categories",
    "check_version",
    "frequency_of",
    "frequency_thresholds",
    "glyph_mask",
    "max_categories",
    "paste_glyph",
    "prepare",
    "prepare_tuning",
    "random_crop_sample",
    "textured_background",
]
