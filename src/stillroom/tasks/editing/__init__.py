"""Editing of pictures by a diffusion model: data, teachers, the feed-forward student, samplers, metrics and pages."""
