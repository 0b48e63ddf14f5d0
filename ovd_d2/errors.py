"""One exception for everything that is wrong with a set-up."""

from __future__ import annotations

from collections.abc import Sequence


class SetupError(ValueError):
    """The configuration and the files it names do not fit each other; every problem is listed."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        listed = "\n".join(f"  {k}. {problem}" for k, problem in enumerate(self.problems, 1))
        super().__init__(f"{len(self.problems)} problem(s) found before starting:\n{listed}")
