"""The one exception that a user can cause. It knows nothing of how it is shown: the command line prints one line."""


class Error(ValueError):
    """A fault in what the caller gave: its message says what is wrong, where, and how to mend it, in one line."""
