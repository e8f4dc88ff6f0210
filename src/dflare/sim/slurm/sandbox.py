"""The namespaces and the file tree that one cluster lives in, by the kernel's own calls.

Nothing but Python's standard library is imported, and no program is called: `init` runs this before
it becomes process 1 of the new namespaces. The tree is an allow-list on a fresh tmpfs, so a job
sees the system's programs, the unpacked packages and its own cluster's folder, and nothing else of
the machine: no data directory, no other cluster, no home. Sources: user_namespaces(7),
mount_namespaces(7), pid_namespaces(7), pivot_root(2), mount_setattr(2), netdevice(7).
"""

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

INSIDE_ID = 1000
"""The one user and group inside: whoever runs the simulator, root too, is this user there."""

USER = "tenant"
HOME = "/home/tenant"
CONTROLLER = "controller"
PACKAGES = "/slurm"
CLUSTER = "/cluster"
ETC = "/etc/slurm"

_NEW_NAMESPACES = (
    0x10000000  # CLONE_NEWUSER
    | 0x00020000  # CLONE_NEWNS
    | 0x40000000  # CLONE_NEWNET
    | 0x20000000  # CLONE_NEWPID
    | 0x04000000  # CLONE_NEWUTS
    | 0x08000000  # CLONE_NEWIPC
)
_CLONE_NEWUTS = 0x04000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442
_PR_SET_NO_NEW_PRIVS = 38
_SIOCBRADDBR, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x89A0, 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK, _IFF_UP = 0x8916, 0x891C, 1

_SYSTEM_TREES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC_ENTRIES = ("alternatives", "ld.so.cache", "localtime")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_READ_ONLY_PROC = ("sys", "irq", "bus", "fs", "sysrq-trigger")

Binds = Mapping[str, tuple[Path, bool]]
"""Further folders by their absolute path inside: where each lies, and whether it is read-only."""

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """The namespaces cannot be had here; the text says why and what a person can do."""


def unshare_all() -> None:
    """Puts this process (its next child, for process ids) into new namespaces.

    Raises `SandboxError`.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(_NEW_NAMESPACES), "unshare")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{INSIDE_ID} {user} 1")
        _write("/proc/self/gid_map", f"{INSIDE_ID} {group} 1")
    except OSError as error:
        raise SandboxError(_why_no_namespaces(error)) from error


def furnish(folder: Path, packages: Path, binds: Binds) -> None:
    """Gives process 1 of the new namespaces its network, its file tree and its name.

    Of `folder`, `inside/` becomes /cluster, `home/` the user's home, `etc/` (read-only) /etc/slurm,
    and the tree is built on the empty `root/`. Raises `SandboxError`.
    """
    try:
        _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make / private")
        _network()
        _build(folder, packages, binds)
        _pivot(folder / "root")
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
        name_host(CONTROLLER)
    except OSError as error:
        raise SandboxError(
            f"A cluster's network or file tree cannot be made in a user namespace here: {error}. "
            "Inside a container it must be one that may mount a fresh /proc."
        ) from error


def name_host(name: str) -> None:
    """Sets the host name of this UTS namespace. Raises `OSError`."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def new_uts(name: str) -> int:
    """A descriptor of a new UTS namespace whose host name is `name`. Raises `OSError`.

    A simulated host is told from its neighbours by this namespace: everything that ever started
    below its slurmd stays in it.
    """
    before = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWUTS), "unshare")
        name_host(name)
        made = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        enter_uts(before)
    finally:
        os.close(before)
    return made


def enter_uts(descriptor: int) -> None:
    """Moves this process into a UTS namespace. Raises `OSError`."""
    _check(_libc.setns(descriptor, _CLONE_NEWUTS), "setns")


def _network() -> None:
    """Loopback, and a bridge with an address: while only loopback is up, glibc resolves no address
    at all, not even 127.0.0.1 (getaddrinfo(3), AI_ADDRCONFIG)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCBRADDBR, b"cluster0".ljust(16, b"\0"))
        for kind, address in ((_SIOCSIFADDR, "192.0.2.1"), (_SIOCSIFNETMASK, "255.255.255.0")):
            packed = struct.pack(
                "16sH2x4s16x", b"cluster0", socket.AF_INET, socket.inet_aton(address)
            )
            fcntl.ioctl(control, kind, packed)
        for name in (b"lo", b"cluster0"):
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))
            (flags,) = struct.unpack_from("H", answer, 16)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP))


def _build(folder: Path, packages: Path, binds: Binds) -> None:
    root = folder / "root"
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=16m")
    for name in _SYSTEM_TREES:
        original = Path("/", name)
        if original.is_symlink():
            (root / name).symlink_to(original.readlink())
        elif original.is_dir():
            _bind(original, root / name, read_only=True)
    _etc(root / "etc")
    _devices(root / "dev")
    for name, options in (("tmp", "mode=1777,size=256m"), ("run", "mode=755,size=16m")):
        (root / name).mkdir()
        _mount("tmpfs", root / name, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    _bind(packages, root / PACKAGES[1:], read_only=True)
    _bind(folder / "etc", root / ETC[1:], read_only=True)
    _bind(folder / "inside", root / CLUSTER[1:])
    _bind(folder / "home", root / HOME[1:])
    for place, (source, read_only) in binds.items():
        _bind(source, root / place.lstrip("/"), read_only=read_only)
    _bin(root / "run" / "bin", root / PACKAGES[1:])
    _proc(root / "proc")
    (root / "sys").mkdir()
    try:
        _mount("sysfs", root / "sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
    except PermissionError:
        # Nothing that runs here needs it: slurmd is told its hardware (config_overrides).
        (root / "sys").chmod(0o555)


def _etc(etc: Path) -> None:
    etc.mkdir()
    (etc / "passwd").write_text(f"{USER}:x:{INSIDE_ID}:{INSIDE_ID}::{HOME}:/bin/bash\n")
    (etc / "group").write_text(f"{USER}:x:{INSIDE_ID}:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (etc / "hosts").symlink_to(f"{ETC}/hosts")
    for name in _ETC_ENTRIES:
        original = Path("/etc", name)
        if original.is_dir():
            _bind(original, etc / name, read_only=True)
        elif original.exists():
            shutil.copyfile(original, etc / name)


def _devices(dev: Path) -> None:
    dev.mkdir()
    for name in _DEVICES:
        if Path("/dev", name).exists():
            (dev / name).touch()
            _mount(f"/dev/{name}", dev / name, None, _MS_BIND)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(f"/proc/self/{target}")
    (dev / "shm").mkdir()
    _mount("tmpfs", dev / "shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=256m")


def _bin(place: Path, packages: Path) -> None:
    """Short names for the programs that Debian calls `…-wlm`: under their long name slurmctld
    crashes, and slurmd finds no slurmstepd."""
    place.mkdir()
    for name in ("slurmctld", "slurmd", "slurmstepd"):
        for path in (f"usr/sbin/{name}-wlm", f"usr/sbin/{name}"):
            if (packages / path).exists():
                (place / name).symlink_to(f"{PACKAGES}/{path}")
                break


def _proc(proc: Path) -> None:
    """A /proc of the new process ids whose switches are read-only: root of the machine is still
    their owner when the simulator runs as root."""
    proc.mkdir()
    _mount("proc", proc, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for name in _READ_ONLY_PROC:
        if (proc / name).exists():
            _mount(str(proc / name), proc / name, None, _MS_BIND | _MS_REC)
            _make_read_only(proc / name)
    for name in ("kcore", "keys", "latency_stats", "timer_list"):
        if (proc / name).exists():
            _mount("/dev/null", proc / name, None, _MS_BIND)


def _pivot(root: Path) -> None:
    os.chdir(root)
    # pivot_root(".", ".") stacks the old root on the new one, from where it is taken away.
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    _make_read_only(Path("/"), recursive=False)


def _bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _mount(str(source), target, None, _MS_BIND | _MS_REC)
    if read_only:
        _make_read_only(target)


def _make_read_only(target: Path, *, recursive: bool = True) -> None:
    attributes = struct.pack("QQQQ", _MS_RDONLY, 0, 0, 0)
    answer = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        _AT_RECURSIVE if recursive else 0,
        attributes,
        len(attributes),
    )
    if answer == 0:
        return
    # Kernels before 5.12 know only the remount, which has to repeat the flags that are locked;
    # the first eight bits of statvfs(3) and mount(2) are the same.
    locked = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount(str(target), target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | locked)


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    answer = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(answer, f"mount {source} on {target}")


def _check(answer: int, action: str) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        # The constructor picks the subclass, such as PermissionError, by the number.
        raise OSError(number, f"{action}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _why_no_namespaces(error: OSError) -> str:
    beginning = f"The kernel gives this user no namespaces ({error}). "
    if error.errno == errno.ENOSPC:
        return beginning + "Raise the sysctl user.max_user_namespaces (and max_net_namespaces)."
    if error.errno in (errno.EPERM, errno.EACCES):
        return beginning + (
            "Allow them: sysctl kernel.unprivileged_userns_clone=1 (Debian) or "
            "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); a container needs a seccomp "
            "profile that lets unshare(2) pass."
        )
    return beginning + "The kernel needs user, network, process and mount namespaces."
