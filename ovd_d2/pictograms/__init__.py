"""Pictograms: a data set drawn by code, a small CLIP trained on it, and the demo of both."""
