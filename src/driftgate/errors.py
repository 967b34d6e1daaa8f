"""The two kinds of errors that a user sees. Each message names the setting, its value and the fix."""


class InputError(Exception):
    """A wrong input of the user, found before compute is spent. The command exits with 2."""


class RunError(Exception):
    """A failure during a run. What was saved before is kept. The command exits with 1."""
