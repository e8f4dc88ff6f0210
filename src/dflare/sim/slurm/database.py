"""MariaDB of a cluster: how it is set up, and how it is called.

Setting one up costs seconds, most of them waiting for the disk, so a whole data folder is made once
(`template.py`) and copied. Sources: mariadb-install-db(1), mariadbd(8), slurmdbd.conf(5).
"""

import shutil
from pathlib import Path

from dflare.sim.slurm import configuration as conf
from dflare.sim.slurm.sandbox import CLUSTER, PACKAGES

DATA = f"{CLUSTER}/mysql"
INSTALLED = f"{DATA}/installed"
"""A file that says that the data folder is whole."""

_BASE = (f"--basedir={PACKAGES}/usr", f"--lc-messages-dir={PACKAGES}/usr/share/mysql")


def install_argv() -> list[str]:
    """Makes the system tables."""
    return [
        "mariadb-install-db",
        "--no-defaults",
        *_BASE,
        f"--datadir={DATA}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    ]


def server_argv() -> list[str]:
    """The server, in little memory."""
    return [
        "mariadbd",
        "--no-defaults",
        *_BASE,
        f"--datadir={DATA}",
        f"--plugin-dir={PACKAGES}/usr/lib/mysql/plugin",
        "--bind-address=127.0.0.1",
        f"--socket={conf.DATABASE_SOCKET}",
        f"--pid-file={CLUSTER}/run/mariadb.pid",
        "--innodb-buffer-pool-size=24M",
        "--innodb-lock-wait-timeout=900",
        "--innodb-log-file-size=16M",
        "--performance-schema=OFF",
        # Waiting for the disk is most of a start. What a killed process wrote is kept all the same,
        # since the kernel has it; only a crash of the machine, which ends the simulation, loses it.
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-flush-method=nosync",
        "--sync-frm=OFF",
    ]


def client_argv() -> list[str]:
    """A client that reads statements from its input."""
    return ["mariadb", "--no-defaults", "-uroot", f"--socket={conf.DATABASE_SOCKET}"]


def statements(password: str) -> bytes:
    """What gives slurmdbd its database; the password of a copied folder is another cluster's."""
    return (
        "create database if not exists slurm_accounting;"
        f"create or replace user slurm@'127.0.0.1' identified by '{password}';"
        "grant all on slurm_accounting.* to slurm@'127.0.0.1';"
    ).encode()


def copy_template(template: Path, inside: Path) -> bool:
    """Puts the data folder of a cluster that never ran in place; false where it cannot be read."""
    staged = inside / "mysql.new"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        shutil.copytree(template, staged, symlinks=True)
        staged.rename(inside / "mysql")
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        return False
    return True
