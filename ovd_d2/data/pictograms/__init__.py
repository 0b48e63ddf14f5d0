"""Pictograms: the data set that is drawn by code, from a font, for a seed."""

from .glyphs import GLYPHS, Glyph, PictogramCategory, build_categories, max_categories
from .render import COLOURS, glyph_mask, paste_glyph, random_crop_sample, textured_background

__all__ = [
    "COLOURS",
    "GLYPHS",
    "Glyph",
    "PictogramCategory",
    "build_categories",
    "glyph_mask",
    "max_categories",
    "paste_glyph",
    "random_crop_sample",
    "textured_background",
]
