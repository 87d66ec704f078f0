"""Parameters: arguments, names, the plan of a model's parameters, and `GradStats`."""
