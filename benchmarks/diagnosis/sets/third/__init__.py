"""The third set, written after what the earlier sets had shown was dealt with."""
