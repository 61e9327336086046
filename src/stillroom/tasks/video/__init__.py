"""Clips of video: what is done in them, told by any number of heads."""
