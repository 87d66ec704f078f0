"""Integrations with torch's clipping functions and with training frameworks."""
