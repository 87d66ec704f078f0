"""The reported set: architectures, faults and seeds on which no rule was tuned when it was first judged."""
