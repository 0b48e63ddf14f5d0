"""The teacher: image and text encoder, prompts and crops (built on open_clip)."""

from ovd_d2.clip.crops import CROP_RECIPE, crop_batch, crop_recipe, embed_proposals, scaled_boxes
from ovd_d2.clip.prompts import (
    PROMPT_FAMILIES,
    article,
    clean_name,
    embed_names,
    embed_synonyms,
    render_prompts,
)
from ovd_d2.clip.teacher import CLIPTeacher

__all__ = [
    "CROP_RECIPE",
    "PROMPT_FAMILIES",
    "CLIPTeacher",
    "article",
    "clean_name",
    "crop_batch",
    "crop_recipe",
    "embed_names",
    "embed_synonyms",
    "embed_proposals",
    "render_prompts",
    "scaled_boxes",
]
