"""MTL-CS."""
