"""Tools that show what data, caches and models are like; nothing here is needed to train."""
