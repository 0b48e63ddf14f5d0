"""Open-vocabulary segmentation by the dense features of a CLIP ViT."""
