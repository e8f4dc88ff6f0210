"""Where the command line keeps what it knows: contexts with their URL, project and tokens.

The file holds tokens, so it is readable by its owner only and is replaced whole. Writers take a
lock beside it: two commands that find the same expired token refresh it once.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from dflare.cli.errors import CliError, UsageError

CONFIG_VARIABLE = "DFLARE_CLI_CONFIG"
URL_VARIABLE = "DFLARE_CLI_URL"
TOKEN_VARIABLE = "DFLARE_CLI_TOKEN"  # noqa: S105 - the name of a variable
PROJECT_VARIABLE = "DFLARE_CLI_PROJECT"
DATA_DIR_VARIABLE = "DFLARE_DATA_DIR"
LOCAL_CONTEXT = "local"


@dataclass(frozen=True)
class Context:
    """One installation as one person uses it.

    ``project`` is an id, ``project_name`` what people call it. ``expires_at`` is seconds of the
    epoch. ``data_dir`` is set for an installation on this machine, whose URL is read from there.
    """

    url: str = ""
    project: str = ""
    project_name: str = ""
    access_token: str = ""
    refresh_token: str = ""
    expires_at: float | None = None
    token_endpoint: str = ""
    ca_file: str = ""
    data_dir: str = ""


@dataclass(frozen=True)
class Config:
    """The whole file."""

    current: str = ""
    contexts: Mapping[str, Context] = field(default_factory=dict[str, Context])

    def with_context(self, name: str, context: Context, *, use: bool = False) -> "Config":
        """A copy in which ``name`` is ``context``; ``use`` makes it the current one."""
        current = name if use or not self.current else self.current
        return Config(current, {**self.contexts, name: context})


@dataclass(frozen=True)
class Connection:
    """What a command works with: a context with the environment's overrides.

    ``name`` is the stored context that a refreshed token belongs to; empty where the tokens are
    not from the file.
    """

    name: str
    context: Context


class ConfigFile:
    """The file of contexts. A missing file is an empty one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "ConfigFile":
        """``DFLARE_CLI_CONFIG``, else ``dflare/config.json`` below the user's configuration
        (XDG Base Directory Specification 0.8)."""
        chosen = environment.get(CONFIG_VARIABLE)
        if chosen:
            return cls(Path(chosen).expanduser())
        home = environment.get("XDG_CONFIG_HOME")
        base = Path(home) if home else Path.home() / ".config"
        return cls(base / "dflare" / "config.json")

    def load(self) -> Config:
        """Read the file; permissions that let others read the tokens are narrowed.

        Raises:
            CliError: it cannot be read or understood.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)
        except FileNotFoundError:
            return Config()
        except OSError as error:
            raise CliError(
                f"{self.path} cannot be read: {error.strerror}",
                next_step=f"Correct its permissions, or choose another file by {CONFIG_VARIABLE}.",
            ) from error
        try:
            data = json.loads(text)
            contexts = {str(name): _context(value) for name, value in data["contexts"].items()}
            return Config(str(data["current"]), contexts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CliError(
                f"{self.path} is not a configuration of dflare: {error}",
                next_step="Remove it and run `dflare login`.",
            ) from error

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the lock of the file; readers do not need it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def save(self, config: Config) -> None:
        """Replace the file, whole, readable by its owner only. Call it within ``locked``."""
        text = json.dumps(
            {
                "current": config.current,
                "contexts": {name: asdict(context) for name, context in config.contexts.items()},
            },
            indent=2,
        )
        try:
            handle, staged = tempfile.mkstemp(dir=self.path.parent, prefix=".config.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            Path(staged).replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def change_context(self, name: str, **changes: Any) -> Context:
        """Change some members of a stored context.

        Raises:
            UsageError: there is no such context.
        """
        with self.locked():
            config = self.load()
            context = replace(known_context(config, name), **changes)
            self.save(config.with_context(name, context))
        return context

    def _unwritable(self, error: OSError) -> CliError:
        return CliError(
            f"{self.path} cannot be written: {error.strerror}",
            next_step=f"Choose another file by {CONFIG_VARIABLE}.",
        )


def known_context(config: Config, name: str) -> Context:
    """The context called ``name``.

    Raises:
        UsageError: there is none.
    """
    context = config.contexts.get(name)
    if context is None:
        names = ", ".join(sorted(config.contexts)) or "none yet"
        raise UsageError(
            f"there is no context {name!r}; there are: {names}",
            next_step="Make one by `dflare login --url URL --context NAME`.",
        )
    return context


def local_url(data_dir: Path) -> str | None:
    """The API's URL as the supervisor of ``data_dir`` last wrote it; None where it never ran."""
    try:
        state = json.loads((data_dir / "run" / "state.json").read_text(encoding="utf-8"))
        return str(state["urls"]["api"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def local_data_dir(environment: Mapping[str, str]) -> Path:
    """Where `dflare up` keeps its data, by the rule that it follows itself."""
    return Path(environment.get(DATA_DIR_VARIABLE) or ".dflare").expanduser().resolve()


def resolve(file: ConfigFile, environment: Mapping[str, str], project: str | None) -> Connection:
    """Which installation and project a command means.

    A stored token is never sent to another URL than the one it was given for.

    Raises:
        UsageError: nothing says where the API is.
    """
    config = file.load()
    name = config.current
    context = known_context(config, name) if name else Context()
    if not name:
        data_dir = local_data_dir(environment)
        context = Context(url=local_url(data_dir) or "", data_dir=str(data_dir))
    elif context.data_dir:
        context = replace(context, url=local_url(Path(context.data_dir)) or context.url)
    url = environment.get(URL_VARIABLE, "").rstrip("/")
    if url and url != context.url:
        name, context = _for_url(config, url)
    token = environment.get(TOKEN_VARIABLE, "")
    if token:
        name = ""
        context = replace(context, access_token=token, refresh_token="", expires_at=None)
    chosen = project or environment.get(PROJECT_VARIABLE, "")
    if chosen:
        context = replace(context, project=chosen, project_name=chosen)
    if not context.url:
        raise UsageError(
            "nothing says where the API is",
            next_step="Start one here by `dflare up`, or log in by `dflare login --url URL`.",
        )
    return Connection(name, context)


def _for_url(config: Config, url: str) -> tuple[str, Context]:
    for name, context in config.contexts.items():
        if context.url == url:
            return name, context
    return "", Context(url=url)


def _context(value: Any) -> Context:
    known = {item.name for item in fields(Context)}
    members = cast("dict[str, Any]", value)
    return Context(**{key: item for key, item in members.items() if key in known})
