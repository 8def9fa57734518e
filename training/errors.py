"""The errors that a person can fix. Every command catches `UserError` in one place and prints one line."""


class UserError(Exception):
    """Something that the person who runs a command can fix: the message says what was given and how to fix it.

    `training.command.run_command` prints the message and exits with `status`; no traceback is shown without `--debug`.

    Attributes:
        status: exit status of the process, 1 unless a subclass says otherwise.
        label: what stands before the message.
    """

    status = 1
    label = "error: "


class OptionError(UserError, ValueError):
    """An option, or a combination of options, that cannot work: names the flag, the value it got and the fix."""

    status = 2
