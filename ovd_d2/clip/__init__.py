"""The teacher: image and text encoder, prompts and crops (built on open_clip)."""

from ovd_d2.clip.crops import CropRecipe, embed_proposals
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
    "PROMPT_FAMILIES",
    "CLIPTeacher",
    "CropRecipe",
    "article",
    "clean_name",
    "embed_names",
    "embed_synonyms",
    "embed_proposals",
    "render_prompts",
]
