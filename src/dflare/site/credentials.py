"""Reading the passwords that a site document names by file or environment variable."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from dflare.site.document import Credential, SiteDocument
from dflare.site.problems import SiteErrors, SiteProblem, path_text


def resolve_credentials(
    document: SiteDocument, folder: Path, environment: Mapping[str, str]
) -> SiteDocument:
    """Return ``document`` with every password read into it.

    It is called where the operator's file lies, before the document is sent. Files are relative to
    ``folder``.

    Raises:
        SiteErrors: a file cannot be read, a variable is not set, or a password is empty.
    """
    resolved: dict[str, Credential] = {}
    problems: list[SiteProblem] = []
    for ref, credential in document.credentials.items():
        try:
            password = _password(credential, folder, environment)
        except (OSError, UnicodeDecodeError, LookupError) as error:
            hint = "make the file or set the variable, then apply the site again"
            where = path_text(("credentials", ref))
            problems.append(SiteProblem(0, 0, where, _reason(error), hint))
            continue
        resolved[ref] = Credential(username=credential.username, password=SecretStr(password))
    if problems:
        raise SiteErrors(document.name, problems)
    return document.model_copy(update={"credentials": resolved})


def _password(credential: Credential, folder: Path, environment: Mapping[str, str]) -> str:
    if credential.password is not None:
        return credential.password.get_secret_value()
    if credential.password_env is not None:
        password = environment.get(credential.password_env, "")
        if not password:
            raise LookupError(f"the environment variable {credential.password_env} is not set")
        return password
    file = folder / (credential.password_file or "")
    password = file.read_text(encoding="utf-8").removesuffix("\n")
    if not password:
        raise LookupError(f"the password file {credential.password_file} is empty")
    return password


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the password file {error.filename} cannot be read: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return "the password file is not UTF-8 text"
    return str(error.args[0])
