"""Losses that methods share: pure functions, tensors in, tensor out.

Each states its reduction, and stops gradients where its equation does.
"""
