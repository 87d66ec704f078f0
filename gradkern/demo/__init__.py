"""`gradkern demo`: train small language models with and without clipping, on the CPU."""
