"""Checks for likely mistakes of a training loop; each warns once."""
