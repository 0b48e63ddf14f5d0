"""Dense features of CLIP's ViTs: an embedding of every patch in the space of image and text."""

from ovd_d2.clip.dense.recipe import DenseRecipe
from ovd_d2.clip.dense.regions import mask_features, roi_features
from ovd_d2.clip.dense.vit import DenseViT

__all__ = ["DenseRecipe", "DenseViT", "mask_features", "roi_features"]
