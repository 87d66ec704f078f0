"""Helpers without torch: lazy imports, names, text, warnings, command-line options."""
