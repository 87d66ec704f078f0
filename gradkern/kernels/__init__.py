"""The compiled extension, torch's own operations as its fallback, and scaling."""
