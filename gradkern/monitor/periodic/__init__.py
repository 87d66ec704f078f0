"""Periodic statistics: weight norms, update ratios, histograms, zeros."""
