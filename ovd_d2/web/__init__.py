"""A web page that shows what a detector finds in images that are dropped on it."""
