"""The writing thread, its queue, and retries while the disk fails."""
