"""`gradkern demo`: small language models trained with and without clipping, on the CPU."""
