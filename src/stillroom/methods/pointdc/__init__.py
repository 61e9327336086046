"""PointDC."""
