"""The one error that a user's own input can cause."""


class InputError(ValueError):
    """Bad input. Its text is one line for the person who gave it: what is wrong, where, and what to do.

    The command line prints that line alone, without a traceback, and exits with 2.
    """
