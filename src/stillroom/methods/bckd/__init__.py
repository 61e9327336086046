"""BCKD - Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection (Yang et al., ICCV 2023)."""
