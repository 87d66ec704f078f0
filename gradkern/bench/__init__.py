"""The subcommand `bench`: clipping timed beside torch. The scripts in benchmarks/ build on it."""
