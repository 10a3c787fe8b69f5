"""Weights & Biases, fed by a process of its own."""
