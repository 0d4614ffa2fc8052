"""The error that a user can mend."""


class InputError(ValueError):
    """Something that came from outside is wrong.

    Its message is one line: what is wrong, where (file, row, field), and what was expected. The
    commands print it as it stands and exit with 2.
    """
