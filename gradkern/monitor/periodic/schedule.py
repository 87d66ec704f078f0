"""`is_due`: the steps at which periodic statistics are taken."""


def is_due(step: int, every: int) -> bool:
    """Whether periodic statistics are due at a step.

    They are due at steps 1, 2, 4, 8, … below `every`, because most faults show in the first steps, then at
    each multiple of `every`; never if it is 0.
    """
    if not every:
        return False
    return step % every == 0 or (0 < step < every and step & (step - 1) == 0)
