"""log2 histograms of gradient magnitudes, from a fixed sample of elements."""

from __future__ import annotations

#: Bin b holds magnitudes in [2**e, 2**(e+1)); the first everything smaller, the last everything larger.
EXPONENTS = tuple(range(-60, 20))

#: Number formats, and the largest magnitude that rounds to zero in them: half the smallest
#: subnormal (ties go to even, that is to zero).
FORMATS = {"fp16": 2.0**-25, "bf16": 2.0**-134, "fp8_e4m3": 2.0**-10, "fp8_e5m2": 2.0**-17}
