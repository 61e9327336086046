"""Anomaly detection: what is unlike everything normal, by a student that learned to see normal images as its teacher does."""
