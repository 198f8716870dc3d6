"""A home and a name for users that the system does not know, as `docker run --user` makes them."""

import os
import pwd
import tempfile
from pathlib import Path

from mambabyte.errors import UserError


def ensure_home_and_name() -> None:
    """Set HOME and USER if nothing useful gives them: libraries fail without, or make a folder named ``~``.

    Raises:
        UserError: there is no folder to be the home.
    """
    number, home_now = os.getuid(), os.path.expanduser("~")
    try:
        pwd.getpwuid(number)
        known = True
    except KeyError:
        known = False
        os.environ.setdefault("USER", f"user-{number}")
    if home_now != "~" and (known or os.access(home_now, os.W_OK)):  # Docker sets HOME=/ for the unknown
        return
    try:
        home = Path(tempfile.gettempdir()) / f"mambabyte-{number}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != number:
            raise PermissionError(f"{home} belongs to another user")
    except OSError as error:
        raise UserError(f"this user has no home folder ({error}): set HOME to one you can write") from error
    os.environ["HOME"] = str(home)
