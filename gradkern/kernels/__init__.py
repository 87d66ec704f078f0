"""The compiled extension, its fallback in torch's operations, and scaling."""
