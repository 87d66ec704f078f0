"""The sixth set: its healthy recipes, its faults, and the models and tasks that no earlier set has."""
