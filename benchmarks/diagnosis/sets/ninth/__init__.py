"""The ninth set: its healthy recipes, its faults, and models, tasks and losses that no earlier set has."""
