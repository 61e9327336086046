"""SDD - Not All Steps are Created Equal: Selective Diffusion Distillation for Image Manipulation."""
