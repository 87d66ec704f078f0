"""Events of a step: skips, spikes, changed limits."""
