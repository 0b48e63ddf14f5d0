"""F-ViT: a detector on a frozen dense ViT (CLIPSelf, arXiv 2310.01403, section 4.2)."""
