"""The sets of labelled runs; `registry` has them by name."""
