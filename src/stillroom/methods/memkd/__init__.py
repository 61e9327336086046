"""MemKD."""
