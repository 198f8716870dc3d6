"""The faults a user can mend: the command line prints them as one sentence and leaves with their code."""


class UserError(Exception):
    """A fault the user can mend; ``str()`` is one sentence that says what is wrong and what to do."""

    exit_code = 1


class Interrupted(UserError):
    """Stopped by a signal after saving; the same command goes on from there (75 is sysexits' EX_TEMPFAIL)."""

    exit_code = 75
