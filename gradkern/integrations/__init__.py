"""Where gradkern meets code that is not its own: torch's functions, training frameworks."""
