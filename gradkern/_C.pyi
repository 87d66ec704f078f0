from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

# None (or False): no kernel takes this list, use torch's own operations.
def clip_grad_norm_(
    parameters: Sequence[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor | None: ...
def get_total_norm(
    tensors: Sequence[Tensor], norm_type: float, error_if_nonfinite: bool
) -> Tensor | None: ...
def clip_grads_with_norm_(parameters: Sequence[Tensor], max_norm: float, total_norm: Tensor) -> bool: ...
def clip_grad_value_(parameters: Sequence[Tensor], clip_value: float) -> bool: ...
def measure(
    parameters: Sequence[Tensor],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float,
    names: Sequence[str] | None,
) -> dict[str, Any] | None: ...
def measure_gradients(
    grads: Sequence[Tensor | None],
    norm_type: float,
    count_zeros: bool,
    inv_scale: float,
    names: Sequence[str] | None,
) -> dict[str, Any] | None: ...
def clip(
    parameters: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    on_nonfinite: str,
    count_zeros: bool,
    names: Sequence[str] | None,
) -> dict[str, Any] | None: ...

class GroupPlan:
    elementwise: bool
    def __init__(self, natives: list[Any], rows: list[Tensor | None]) -> None: ...

def clip_by_groups(
    parameters: Sequence[Tensor],
    plan: GroupPlan,
    norm_type: float,
    on_nonfinite: str,
    count_zeros: bool,
    names: Sequence[str] | None,
) -> dict[str, Any] | None: ...
def shared_memory(
    grads: Sequence[Tensor | None], rows: Sequence[Tensor]
) -> tuple[int, int] | Literal[False] | None: ...
def agc_(
    weights: Sequence[Tensor], grads: Sequence[Tensor | None] | None, clip_factor: float, eps: float
) -> Tensor | None: ...
def partials(
    shards: Sequence[Tensor | None],
    norm_type: float,
    count_zeros: bool,
    per_tensor: bool,
    operation: str,
    names: Sequence[str] | None,
) -> tuple[Tensor, Tensor] | None: ...
def scale_(grads: Sequence[Tensor | None], factor: Tensor, zero: Tensor | None = None) -> bool: ...
def clamp_(grads: Sequence[Tensor | None], limit: float) -> bool: ...
def policy_step_(
    kind: str, total: Tensor, state: Tensor, constants: Sequence[float], norms: Tensor | None = None
) -> Tensor | None: ...
def are_tensors(items: Sequence[Any]) -> bool: ...
def identities(items: Sequence[Any]) -> tuple[tuple[int, ...], bool] | None: ...
def dicts_unchanged(owners: Sequence[tuple[dict[str, Any], tuple[Any, ...]]]) -> bool: ...
def is_plain(grads: Sequence[Tensor | None]) -> bool: ...
def why_unusable(index: int) -> str: ...
def build_info() -> dict[str, str]: ...
