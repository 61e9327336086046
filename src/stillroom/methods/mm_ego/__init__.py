"""Multimodal distillation: networks of several modalities teach, as one ensemble, a student that sees frames alone."""
