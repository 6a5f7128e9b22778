"""Patches in, checkpoints on the way, a model out."""
