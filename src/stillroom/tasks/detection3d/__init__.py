"""Detection in three dimensions: frames of points, pictures or both, and boxes in metres.

- `sources`, `data`: what ``--data`` may be, and batches of it;
- `networks`, `models`: detectors that look from above, and how they are named;
- `supervised`: plain training, and what all training of such detectors has in common;
- `loaded`, `pages`: a run's student, ready to use, and the report's own part.
"""
