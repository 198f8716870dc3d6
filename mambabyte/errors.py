"""Errors that the user can fix: the command line prints them as one sentence and exits with their code."""


class UserError(Exception):
    """An error that the user can fix; its text is one sentence: what is wrong and what to do."""

    exit_code = 1


class Interrupted(UserError):
    """Stopped by a signal after saving; the same command resumes from there (75 is sysexits' EX_TEMPFAIL)."""

    exit_code = 75
