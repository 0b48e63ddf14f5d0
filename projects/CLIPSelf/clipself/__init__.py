"""CLIPSelf (Wu et al., ICLR 2024, arXiv 2310.01403) and its detector F-ViT."""
