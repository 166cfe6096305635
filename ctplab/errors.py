"""One exception for everything a user can put right, and one for work that was cut short."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong and what would work. The command line exits with 2."""


class Interrupted(Exception):
    """Work ended early, through no fault of its input. Running it again resumes. The command line exits with 130."""
