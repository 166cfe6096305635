"""One exception for everything a user can put right."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong and what would work. The command line exits with 2."""
