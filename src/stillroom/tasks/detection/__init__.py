"""Detection of objects: boxes, dense detectors, their targets."""
