"""The two kinds of failure a user meets. Each message names the setting, its value and the mend."""


class InputError(Exception):
    """Something the user gave is wrong; found before compute is spent. The command exits with 2."""


class RunError(Exception):
    """Something failed on the way; what was made before is kept. The command exits with 1."""
