"""Where in the API a cluster is."""

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError, ExitCode


def cluster_path(api: Api, cluster: str) -> str:
    """The path of a cluster; one is found by id even where no project is chosen.

    Raises:
        CliError: no project is chosen, and none or several are called that.
    """
    if api.context.project:
        return f"/projects/{api.project()}/clusters/{segment(cluster)}"
    fitting = [item for item in api.pages("/clusters") if cluster in (item["id"], item["name"])]
    if len(fitting) != 1:
        found = "more than one cluster is" if fitting else "no cluster that you may see is"
        raise CliError(
            f"{found} called {cluster!r}",
            next_step="Say which project by --project; see `dflare cluster list --all`.",
            exit_code=ExitCode.USAGE if fitting else ExitCode.REFUSED,
        )
    return f"/projects/{segment(fitting[0]['project_id'])}/clusters/{segment(fitting[0]['id'])}"
