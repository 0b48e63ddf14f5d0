"""What is wrong with the user's input, and how a tool says so."""

from __future__ import annotations

import errno
import reprlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# What a disk can say; none of them is a fault of the program.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
_SHORT.maxlevel = 2  # lists of lists of a yaml file's aliases could have a million words


def brief(value: object) -> str:
    """`repr` of what was found, for a message: short and quickly made, whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


class SetupError(ValueError):
    """The configuration and the files it names do not fit each other.

    Attributes:
        problems: every one of them; the message lists the first `LISTED`.
    """

    LISTED = 40

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = [f"  {k}. {one}" for k, one in enumerate(self.problems[: self.LISTED], 1)]
        if more := len(self.problems) - len(lines):
            lines.append(f"  and {more} more")
        listed = "\n".join(lines)
        super().__init__(f"{len(self.problems)} problem(s) found before starting:\n{listed}")


@contextmanager
def exit_with_message(*wrong_input: type[Exception]) -> Iterator[None]:
    """Ends the program with what an error of these types says, and status 1; for tools.

    So does a disk that is full or forbidden, and Ctrl-C, with status 130. Any other error is a
    fault and keeps its traceback. Serves as a decorator, too.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except wrong_input as error:
        # str() of a KeyError is the repr of its message.
        sys.exit(str(error.args[0] if isinstance(error, KeyError) and error.args else error))
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        sys.exit(f"{error}: free some space, or name a place that you may read and write")
