"""One figure beside what is asked of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`number` is a row of SECURITY.md's; without `most` the figure is only there to compare with."""

    number: int | str
    name: str
    measured: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the figure is as asked."""
        return (self.most is None or self.measured <= self.most) and (self.least is None or self.measured >= self.least)

    def show(self) -> str:
        """A line for people."""
        asked = "" if self.most is None else f"at most {self.most:g}"
        asked = asked if self.least is None else f"at least {self.least:g}"
        figure = f"{self.measured:9.1f} {self.unit}"
        return f"{'' if self.is_met else 'NOT MET':7} {self.number!s:>8}  {self.name:52} {figure:24} {asked}"
