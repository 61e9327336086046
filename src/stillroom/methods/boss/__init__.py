"""BOSS."""
