"""How tools end on wrong input."""

import pytest

from ovd_d2.errors import SetupError, exit_with_message


@exit_with_message(SetupError, KeyError)
def tool(error: Exception | None) -> str:
    if error is not None:
        raise error
    return "done"


def test_nothing_wrong():
    assert tool(None) == "done"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            SetupError(["no file", "no key"]),
            "2 problem(s) found before starting:\n  1. no file\n  ",
        ),
        (KeyError("no 'such' name"), "no 'such' name"),
    ],
)
def test_wrong_input_ends_the_program_with_its_message(error: Exception, said: str):
    with pytest.raises(SystemExit) as caught:
        tool(error)
    assert str(caught.value.code).startswith(said)


def test_a_fault_keeps_its_type():
    with pytest.raises(ZeroDivisionError):
        tool(ZeroDivisionError())
