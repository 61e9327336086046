"""Images and texts in one space: pairs to learn from, retrieval, and classes named by words."""
