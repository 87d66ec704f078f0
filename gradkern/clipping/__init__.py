"""Clipping: the drop-in functions, `GradClipper` and `measure`."""
