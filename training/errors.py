"""Base classes of errors that the user can fix. `training.command.run_command` prints them as one line."""


class UserError(Exception):
    """An error that the user of a command can fix. The message says what is wrong and how to fix it.

    `training.command.run_command` prints the message and exits with `status`; no traceback is shown without `--debug`.

    Attributes:
        status: exit status of the process, 1 by default.
        label: prefix of the printed message.
    """

    status = 1
    label = "error: "


class OptionError(UserError, ValueError):
    """An invalid option or combination of options. The message names the flag, its value and the fix."""

    status = 2
