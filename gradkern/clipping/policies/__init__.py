"""Policies: what is done with the gradients, decided from their statistics. Also `gradkern.policies`."""

from gradkern.clipping.policies.base import Policy
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.global_norm import GlobalNorm

__all__ = ["Decision", "GlobalNorm", "Policy"]
