"""TinyCLIP - CLIP Distillation via Affinity Mimicking and Weight Inheritance."""
