"""The error whose message is for the user: printed without a traceback."""


class EvaluationError(ValueError):
    """Something asked for cannot be done: the message names the flag or file, what it got and the mend."""
