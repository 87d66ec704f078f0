"""The folder that `gradkern run` puts on PYTHONPATH."""
