"""The one error a user can cause: bad input, explained in one line."""

import os

# For processes that are started: a module that lies in the working directory, perhaps somebody else's, is not imported.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
ALLOW = "ENIGMA_ALLOW_CODE"  # set by --allow-code


class InputError(ValueError):
    """Bad input. The message names where, what was found and what was expected.

    The command line prints it without a traceback and exits with status 2.
    """


def check_code_allowed(what: str) -> None:
    """InputError unless the command line allows code that a profile names: the profile may be somebody else's."""
    if os.environ.get(ALLOW) != "1":
        raise InputError(
            f"{what}: found code that would run; expected none; add --allow-code if you trust it"
        )
