"""`RollbackGuard`: returns to an earlier state when training goes wrong, and stops if that does not help."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor

from gradkern.diagnosis import DiagnosisError, Finding, diagnose
from gradkern.monitor.arguments import as_count
from gradkern.monitor.monitor import GradMonitor
from gradkern.monitor.ranks import over_several_ranks
from gradkern.params.arguments import check_group
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_STATE = {"steps", "rollbacks", "last", "skipped"}


class RollbackError(RuntimeError):
    """Training should stop: rolling back has not helped.

    Attributes:
        findings: the diagnosis of the run, the headline first; empty if the run was not recorded.
    """

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message)
        self.findings = findings


class RollbackGuard:
    """Call `restore` after too many skipped steps, or after a severe finding of the diagnosis.

    Args:
        restore: a function that puts model, optimizer, learning rate schedule and data back to a good state.
            It is called on every rank.
        max_skips: roll back when this many of the latest `window` steps were skipped. At most `window`.
        window: number of latest steps to consider.
        budget: number of rollbacks allowed. The next reason for one raises `RollbackError`.
        cool_down: number of steps after a rollback without another one. Findings that arrive meanwhile are
            ignored.
        every: check every `every` steps. A check reads the skipped steps from the device; over several ranks
            it is one collective of 16 bytes.
        process_group: the ranks that roll back together. Default: all.

    Examples:
        >>> guard = gradkern.RollbackGuard(restore)
        >>> clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip")
        >>> monitor = gradkern.GradMonitor(model, optimizer, "runs/first", on_finding=guard.found)
        >>> for batch in loader:
        ...     loss = compute_loss(model, batch)
        ...     loss.backward()
        ...     stats = clipper.clip_()
        ...     monitor.record(stats, loss=loss)
        ...     if not guard.check(stats, monitor) and not stats.skip_step:
        ...         optimizer.step()
        ...     optimizer.zero_grad()

    Raises:
        TypeError, ValueError: an invalid argument.

    Notes:
        All ranks must call `check` at every step. They roll back, continue or stop in the same call, even if
        only one rank has a finding.

        After a rollback `load_state_dict` has no effect. The checkpoint that `restore` loads may contain the
        guard's state, which must not reset the budget.
    """

    def __init__(
        self,
        restore: Callable[[], Any],
        *,
        max_skips: int = 5,
        window: int = 100,
        budget: int = 3,
        cool_down: int = 100,
        every: int = 10,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if not callable(restore):
            raise TypeError(f"[RollbackGuard] restore: expected a function, got {type(restore).__name__}")
        check_group("RollbackGuard", "process_group", process_group)
        self._restore = restore
        self.max_skips = as_count("max_skips", max_skips, 1, "RollbackGuard")
        self.window = as_count("window", window, 1, "RollbackGuard")
        if self.max_skips > self.window:
            raise ValueError(
                f"[RollbackGuard] max_skips: expected at most the window of {self.window} steps, got "
                f"{self.max_skips}, which so few steps never reach; raise window or lower max_skips"
            )
        self.budget = as_count("budget", budget, 0, "RollbackGuard")
        self.cool_down = as_count("cool_down", cool_down, 0, "RollbackGuard")
        self.every = as_count("every", every, 1, "RollbackGuard")
        self._group = process_group
        self._steps = 0
        self._unread: list[tuple[int, Tensor]] = []
        self._skipped: deque[int] = deque()
        self._severe: Finding | None = None
        self._lock = threading.Lock()
        self._rollbacks = 0
        self._last: int | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Called by copy, deepcopy and pickle."""
        raise TypeError(
            "[RollbackGuard] copy: a guard holds a function that restores one training and cannot be copied "
            "or pickled; keep it outside the model, and save its state_dict() in the checkpoint"
        )

    @property
    def rollbacks(self) -> int:
        """Number of rollbacks so far."""
        return self._rollbacks

    def found(self, finding: Finding) -> None:
        """Take a finding: ``GradMonitor(..., on_finding=guard.found)``.

        A severe finding leads to a rollback at the next check. The method can be called from any thread.
        """
        if finding.severity == "severe":
            with self._lock:
                self._severe = self._severe or finding

    def check(self, stats: GradStats, monitor: GradMonitor | None = None) -> bool:
        """Roll back if necessary. Call it at every step, on every rank, before ``optimizer.step()``.

        Args:
            stats: the result of `clip_`, whose `skip_step` is counted.
            monitor: the monitor of the run, which records rollbacks as events. If training has to stop, its
                run is diagnosed for `RollbackError`.

        Returns:
            Whether `restore` was called. Skip this step then, because its gradients belong to the abandoned
            state.

        Raises:
            RollbackError: a rollback is needed but the budget is used up. Raised on every rank.

        Notes:
            Synchronises every `every` steps.
        """
        self._steps += 1
        if stats.skip_step is not None:
            self._unread.append((self._steps, stats.skip_step))
        if self._steps % self.every:
            return False
        skips, severe = self._look()
        cooling = self._last is not None and self._steps <= self._last + self.cool_down
        if cooling:  # a finding now may be about steps before the rollback
            with self._lock:
                self._severe = None
            return False
        if not severe and skips < self.max_skips:
            return False
        reason = f"{skips} of the latest {self.window} steps were skipped"
        if skips < self.max_skips:
            reason = "the diagnosis of the run is severe" if self._severe is None else self._severe.title
        if self._rollbacks >= self.budget:
            self._stop(reason, monitor)
        self._roll_back(reason, monitor)
        return True

    def _look(self) -> tuple[int, bool]:
        """Number of skipped steps among the latest, and whether there is a severe finding, on any rank."""
        self._read()
        with self._lock:
            severe = self._severe is not None
        if not over_several_ranks():
            return len(self._skipped), severe
        return _largest(len(self._skipped), severe, self._group)

    def _read(self) -> None:
        """Read the verdicts since the last check. Synchronises."""
        if self._unread:
            flags = torch.stack([skip for _, skip in self._unread]).tolist()
            self._skipped.extend(step for (step, _), skip in zip(self._unread, flags) if skip)
            self._unread.clear()
        while self._skipped and self._skipped[0] <= self._steps - self.window:
            self._skipped.popleft()

    def _roll_back(self, reason: str, monitor: GradMonitor | None) -> None:
        self._rollbacks += 1
        self._last = self._steps
        self._forget()
        data = {"reason": reason, "count": self._rollbacks, "budget": self.budget}
        if monitor is not None:
            data["step"] = monitor.step
        self._restore()
        if monitor is not None:  # afterwards: `restore` may resume the run at an earlier step
            monitor.event("rollback", data)

    def _forget(self) -> None:
        self._skipped.clear()
        self._unread.clear()
        with self._lock:
            self._severe = None

    def _stop(self, reason: str, monitor: GradMonitor | None) -> None:
        findings: list[Finding] = []
        if monitor is not None:
            monitor.event("stop", {"reason": reason, "count": self._rollbacks, "budget": self.budget})
            if monitor.records:
                with monitor.history() as history:
                    findings = diagnose(history)
        told = _told_by_any(str(DiagnosisError(findings[0])) if findings else "", self._group)
        raise RollbackError(
            f"[RollbackGuard.check] training has not recovered after {self.budget} rollbacks: {reason}."
            f"{' ' + told if told else ''}",
            findings,
        )

    def state_dict(self) -> dict[str, Any]:
        """The numbers of steps and rollbacks, and the latest skipped steps. Synchronises."""
        self._read()
        return {
            "steps": self._steps,
            "rollbacks": self._rollbacks,
            "last": self._last,
            "skipped": list(self._skipped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Has no effect after a rollback.

        Raises:
            ValueError: `state` is not the state of a RollbackGuard.
        """
        if set(state) != _STATE:
            raise ValueError(
                f"[RollbackGuard.load_state_dict] state: expected {sorted(_STATE)}, got {sorted(state)}"
            )
        if self._rollbacks:  # `restore` is loading a checkpoint
            return
        self._steps, self._rollbacks = int(state["steps"]), int(state["rollbacks"])
        self._last, self._skipped = state["last"], deque(state["skipped"])
        self._unread.clear()


def _largest(skips: int, severe: bool, group: ProcessGroup | None) -> tuple[int, bool]:
    import torch.distributed as dist

    from gradkern.distributed.groups import group_device

    own = dist.distributed_c10d._get_default_group() if group is None else group
    found = torch.tensor([skips, int(severe)], device=group_device(own))
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    most, any_severe = found.tolist()
    return int(most), bool(any_severe)


def _told_by_any(text: str, group: ProcessGroup | None) -> str:
    """The text of the rank that has one."""
    if not over_several_ranks():
        return text
    import torch.distributed as dist

    texts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(texts, text, group=group)
    return next((t for t in texts if t), "")
