"""GLIP: detection as phrase grounding (Li et al., CVPR 2022, arXiv 2112.03857)."""
