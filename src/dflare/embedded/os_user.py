"""Runs a program under the rights it needs and ends it with its parent.

PostgreSQL refuses to run as root, so a start as root hands it to an ordinary system user. That
user may be unable to reach a data directory below a closed home, and opening that home to
everybody would be worse than the problem: the program keeps the one capability that walks
through closed directories instead.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

USER_NAME = "dflare-postgres"
FALLBACK_USER_NAME = "nobody"


class OsUserError(Exception):
    """No ordinary user can be had for a program that refuses to run as root."""


@dataclass(frozen=True)
class OsUser:
    """An ordinary user that a root parent gives a child to."""

    name: str
    uid: int
    gid: int

    def own(self, *paths: Path) -> None:
        """Gives the paths to this user, without following into them."""
        for path in paths:
            os.chown(path, self.uid, self.gid)

    def can_reach(self, path: Path) -> bool:
        """Whether this user may walk down to `path` by the directories' own modes."""
        return all(self._may_enter(parent) for parent in path.resolve().parents)

    def _may_enter(self, directory: Path) -> bool:
        facts = directory.stat()
        if facts.st_uid == self.uid:
            return bool(facts.st_mode & 0o100)
        if facts.st_gid == self.gid:
            return bool(facts.st_mode & 0o010)
        return bool(facts.st_mode & 0o001)


def ordinary_user() -> OsUser | None:
    """The user for programs that refuse root; None when this process is not root.

    Made once by `useradd`; where that cannot be (a read-only image), `nobody`.
    Raises `OsUserError` when neither exists.
    """
    if os.geteuid() != 0:
        return None
    for name in (USER_NAME, FALLBACK_USER_NAME):
        if name == USER_NAME:
            _ensure_user()
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return OsUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise OsUserError(
        f"PostgreSQL does not run as root and neither {USER_NAME!r} nor "
        f"{FALLBACK_USER_NAME!r} exists here. Run this as an ordinary user, or create one of them."
    )


def launch_prefix(death_signal: str, user: OsUser | None = None, *reach: Path) -> list[str]:
    """The argv prefix that gives a child `death_signal` when its parent dies, and its user.

    `death_signal` is a name without SIG. `reach` are the paths the child must get to. The
    signal follows the thread that starts the child (prctl(2), PR_SET_PDEATHSIG), so children
    must be started from a thread that lives as long as they should.
    """
    setpriv = shutil.which("setpriv", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if setpriv is None:
        raise OsUserError("The program setpriv (Debian package util-linux) is missing; install it.")
    prefix = [setpriv, "--pdeathsig", death_signal]
    if user is not None:
        prefix += [f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
        if not all(user.can_reach(path) for path in reach):
            # Without the secure bit access(2), by which initdb looks for its server, would not
            # count the capability.
            prefix += [
                "--securebits=+no_setuid_fixup",
                "--inh-caps=+dac_override",
                "--ambient-caps=+dac_override",
            ]
    return [*prefix, "--"]


def _ensure_user() -> None:
    try:
        pwd.getpwnam(USER_NAME)
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if useradd is None:
            return
        # A failure is no error yet: a start beside this one may have made the user, and the
        # caller looks the name up again.
        subprocess.run(  # noqa: S603 - fixed arguments, no shell
            [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER_NAME],
            check=False,
            capture_output=True,
            timeout=30,
        )
