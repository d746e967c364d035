"""The lines that a run prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One measured row. at_least, at_most: the target of the ratio; most: of ours alone, in its unit. theirs None:
    there is nothing to compare with."""

    row: str
    what: str
    ours: float
    theirs: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    most: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else float("nan")

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g} " + ("met" if self.ratio >= self.at_least else "MISSED")
        if self.at_most is not None:
            return f"<= {self.at_most:g} " + ("met" if self.ratio <= self.at_most else "MISSED")
        if self.most is not None:
            return f"<= {self.most:g} {self.unit} " + ("met" if self.ours <= self.most else "MISSED")
        return ""

    def __str__(self) -> str:
        ours = f"{_short(self.ours)} {self.unit}"
        theirs, ratio = ("", "") if self.theirs is None else (f"{_short(self.theirs)} {self.unit}", f"{self.ratio:.2f}")
        return f"{self.row:4} {self.what:58} {ours:>16} {theirs:>16} {ratio:>7}  {self.target}"


HEADING = f"{'row':4} {'work':58} {'ours':>16} {'theirs':>16} {'ratio':>7}  target"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
