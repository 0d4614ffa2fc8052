"""The error for wrong input."""


class InputError(ValueError):
    """Wrong input, which the user can correct.

    Its message is one line: what is wrong, where (file, row, field), and what was expected. The
    commands print it unchanged and exit with 2.
    """
