"""Values of a step on their way from the device to a row."""
