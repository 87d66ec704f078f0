"""Clipping timed beside torch on this machine: the subcommand `bench`, and what benchmarks/ builds on."""
