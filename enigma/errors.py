"""The one error a user can cause: bad input, explained in one line."""


class InputError(ValueError):
    """Bad input. The message names where, what was found and what was expected.

    The command line prints it without a traceback and exits with status 2.
    """
