"""`StepNumbers`: per-step scalars, one value per recorded step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradkern.history import format
from gradkern.history.named import F64, LOSS, read_named
from gradkern.history.reader import HistoryReader, names_file


class StepNumbers(HistoryReader):
    """[T] arrays of numbers that are recorded once per step."""

    @property
    def steps(self) -> NDArray[np.int64]:
        """[T] step numbers (ascending, unless opened with superseded=True)."""
        return self._column("step")

    @property
    def time(self) -> NDArray[np.float64]:
        """[T] time of `record` in seconds since 1970."""
        return self._column("time")

    @property
    def loss(self) -> NDArray[np.float64]:
        """[T] loss, after amendments; NaN where it was NaN or not given (see `has_loss`)."""
        amended = self._amendments().get(LOSS)
        if amended is None:
            return self._column("loss")
        later = amended[self._rows, 0]
        return np.where(np.isnan(later), self._column("loss"), later)

    @property
    def has_loss(self) -> NDArray[np.bool_]:
        """[T] whether a loss was given."""
        given = np.asarray((self._column("flags") & format.HAS_LOSS) != 0)
        amended = self._amendments().get(LOSS)
        return given if amended is None else given | ~np.isnan(amended[self._rows, 0])

    @property
    def total_norm(self) -> NDArray[np.float64]:
        """[T] norm of all gradients together. `phase` tells whether it is from before clipping."""
        return self._column("total_norm")

    @property
    def clip_coef(self) -> NDArray[np.float64]:
        """[T] factor that the gradients were multiplied by, the smallest of several; NaN if the norm was NaN
        or the statistics do not come from a clip (`has_coef`)."""
        return self._column("clip_coef")

    @property
    def has_coef(self) -> NDArray[np.bool_]:
        """[T] whether the statistics come from a clip, and so have a `clip_coef`."""
        return np.asarray((self._column("flags") & format.HAS_COEF) != 0)

    @property
    def clipped(self) -> NDArray[np.bool_]:
        """[T] whether clipping changed the gradients: the coefficient is below 1, or NaN."""
        return self.has_coef & ~(self.clip_coef >= 1)

    @property
    def threshold(self) -> NDArray[np.float64]:
        """[T] norm above which the policy clipped; NaN if there was no limit or several."""
        return self._column("threshold")

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """[T] whether the step was skipped, by on_nonfinite="skip", a GradScaler or a policy."""
        return np.asarray((self._column("flags") & format.SKIPPED) != 0)

    @property
    def phase(self) -> NDArray[np.str_]:
        """[T] when the norms were measured: "before_clip" (by the clip itself, or ``after_clip=False``),
        "after_clip" (``after_clip=True``), or "measured" if `record` did not know."""
        names: NDArray[np.str_] = np.array(format.PHASES)[
            np.minimum((self._column("flags") >> format.PHASE_SHIFT) & 3, 2)
        ]
        return names

    @property
    def inv_scale(self) -> NDArray[np.float64]:
        """[T] 1 / loss scale, which all norms of the step were multiplied by; 1.0 without loss scaling."""
        return self._column("inv_scale")

    @property
    def loss_scale(self) -> NDArray[np.float64]:
        """[T] loss scale that the gradients were divided by; NaN without loss scaling."""
        with np.errstate(divide="ignore"):
            return np.where(self.inv_scale == 1, np.nan, 1 / self.inv_scale)

    @property
    def lr(self) -> NDArray[np.float64]:
        """[T] learning rate of the first parameter group; NaN without an optimizer."""
        groups = self.lr_groups
        return groups[:, 0] if groups.shape[1] else np.full(len(self), np.nan)

    @property
    def lr_groups(self) -> NDArray[np.float64]:
        """[T, G] learning rate of each parameter group of all optimizers; NaN where a group did not exist."""
        if "lr" not in self._cache:
            self._cache["lr"] = self._scalars.lr[self._rows]
        return self._cache["lr"]

    @names_file
    def _amendments(self) -> dict[str, F64]:
        """Amendments by name: [R, 1] for all rows, NaN where there is none."""
        if "amendments" not in self._cache:
            self._cache["amendments"] = read_named(self._db, "amendments", self._all["seq"], 1)
        return self._cache["amendments"]
