"""How tools end on wrong input."""

import errno

import pytest

from ovd_d2.errors import SetupError, exit_with_message


@exit_with_message(SetupError, KeyError)
def tool(error: BaseException | None) -> str:
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_forbidden_disk_is_said(number):
    with pytest.raises(SystemExit, match=r"'out/x.pth': free some space"):
        tool(OSError(number, "refused", "out/x.pth"))


def test_an_error_that_is_not_of_the_disk_keeps_its_type():
    with pytest.raises(ChildProcessError):
        tool(ChildProcessError(errno.ECHILD, "none"))


def test_ctrl_c_ends_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as caught:
        tool(KeyboardInterrupt())
    assert caught.value.code == 130 and "stopped by Ctrl-C" in capsys.readouterr().err
