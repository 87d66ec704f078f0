"""Real trainings that show what a policy of `gradkern.policies` does, and what it does not."""
