"""The subcommand `bench`, which compares clipping with torch. The scripts in benchmarks/ build on it."""
