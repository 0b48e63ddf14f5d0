"""Numbers that are GLIP's own: recall of phrases."""
