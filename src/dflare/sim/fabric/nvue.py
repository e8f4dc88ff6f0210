"""The NVUE REST API of every switch, as one ASGI app.

Source: CumulusNetworks/docs, ``content/cumulus-linux-513/…/NVUE-API.md``. HTTP Basic over TLS,
prefix ``/nvue_v1``; the switch is the one whose address was connected to. A key that holds a slash
(an IP prefix) is percent-encoded in a path.

``GET /{path}?rev=R``
    200, the object at that path of the tree.
``GET /{path}?rev=A&diff=B``
    200, the merge patch that turns A into B: ``null`` for what B lacks.
``PATCH /{path}?rev=ID``
    A merge patch in which ``null`` removes a key, or ``{"set": …}`` or ``{"unset": …}``. 200, the
    change with what the server added (types of interfaces).
``DELETE /{path}?rev=ID``
    204.
``POST /revision``
    200 ``{"7": {"state": "pending", "transition": {"issue": {}, "progress": ""}}}``.
``GET /revision``, ``GET /revision/ID``
    200, all of them by id; 200 ``{"state": …, "transition": {"issue": {…}, "progress": …}}``.
``PATCH /revision/ID``
    ``{"state": "apply", "auto-prompt": {"ays": "ays_yes"}}``. 200 ``{"state": "apply", …}`` at
    once; then ask for the revision until it is ``applied``, ``invalid`` or ``ays_fail``.
``PATCH /revision/applied``
    ``{"state": "save", "auto-prompt": {"ays": "ays_yes"}}``. 200 ``{"state": "save", …}``.
``DELETE /revision/ID``
    204: a pending revision is dropped.

``R`` is ``operational`` (the default), ``applied``, ``startup``, ``pending`` (the newest pending
one) or an id. Errors are ``{"title", "status", "detail", "type"}``: 400 for what the schema lacks,
401, 404 for an unknown revision or path, 409 for a revision that is not pending any more.

**Only ``rev=operational`` says what the hardware does**: it names every front port with its link
and bridge membership, configured or not. ``rev=applied`` is what NVUE believes and holds only what
was configured (the simulator never fills defaults in, so ``filled`` has no effect).

A confirmed apply adds ``"state-controls": {"confirm": seconds}`` and ends in ``confirm`` until
``PATCH {"state": "confirm_yes"}``. An issue of a failed one: ``{"0": {"code": "config_invalid",
"message": …, "severity": "error", "data": {"location": …, "reason": …}}}``.
"""

from collections.abc import Mapping
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from dflare.sim.config import Credentials
from dflare.sim.fabric import model
from dflare.sim.fabric.switch import NotPending, Revision, State, Switch, Wanted
from dflare.sim.fabric.tree import (
    Json,
    Path,
    Tree,
    branch,
    diff,
    find,
    has,
    merge,
    nest,
    removal,
    remove,
)
from dflare.sim.fabric.wire import Answer, BadBody, Call, read_call
from dflare.sim.faults import FaultPlan
from dflare.sim.server import drop_connection

_TITLES = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
_CHALLENGE = ((b"www-authenticate", b'Basic realm="NVUE"'),)


class _NotFound(Exception):  # noqa: N818 - what the client asked for is missing
    """No such revision, or nothing at that path."""


def nvue_app(
    switches: Mapping[str, Switch], credentials: Credentials, faults: FaultPlan
) -> ASGIApp:
    """The app for ``switches``, keyed by their addresses."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        switch = switches.get(scope["server"][0])
        if switch is not None and faults.hit("nvue_unreachable", switch.name) is not None:
            await drop_connection(scope, receive)
            return
        try:
            call = await read_call(scope, receive)
            answer = _answer(switch, call, credentials)
        except (BadBody, model.Refused) as refused:
            answer = _problem(400, str(refused))
        except _NotFound as missing:
            answer = _problem(404, str(missing))
        except NotPending as conflict:
            answer = _problem(409, str(conflict))
        await answer.send(send)

    return app


def operational(switch: Switch) -> Tree:
    """What the hardware does: the programmed tree with every front port's state filled in."""
    interfaces: Tree = dict(branch(switch.programmed, "interface"))
    for name, port in switch.view.ports.items():
        up = "up" if port.link_up else "down"
        shown: Tree = {
            "type": model.type_of(name) or "swp",
            "link": {"state": {up: {}}, "admin-status": up, "oper-status": up, "mtu": 9216},
        }
        if port.vrf is None:
            member: Tree = {}
            if port.tagged:
                member["vlan"] = {str(vlan): {} for vlan in sorted(port.tagged)}
                member["untagged"] = "none" if port.untagged is None else port.untagged
            elif port.untagged is not None:
                member["access"] = port.untagged
            shown["bridge"] = {"domain": {model.BRIDGE: member}}
        configured = branch(interfaces, name)
        interfaces[name] = {**configured, **shown}
    system = branch(switch.programmed, "system")
    return {
        **switch.programmed,
        "interface": interfaces,
        "system": {
            "hostname": "cumulus",
            **system,
            "build": model.BUILD,
            "timezone": "Etc/UTC",
            "uptime": int(switch.uptime_s),
        },
    }


def _answer(switch: Switch | None, call: Call, credentials: Credentials) -> Answer:
    if switch is None or call.path[:1] != ("nvue_v1",):
        raise _NotFound("no such resource")
    if not call.authorized(credentials):
        return Answer(401, _problem(401, "wrong user name or password").body, _CHALLENGE)
    path = call.path[1:]
    if path[:1] == ("revision",):
        return _on_revision(switch, call, path[1:])
    if path[:1] and path[0] not in model.TOP_LEVEL:
        raise _NotFound(f"'{path[0]}' is not a known object")
    match call.method:
        case "GET":
            return _read(switch, call, path)
        case "PATCH":
            return _patch(switch, call, path)
        case "DELETE":
            revision = _pending(switch, call)
            switch.change(revision, remove(revision.tree, path))
            return Answer(204)
        case _:
            return _problem(405, f"{call.method} is not allowed here")


def _read(switch: Switch, call: Call, path: Path) -> Answer:
    tree = _tree(switch, call.query.get("rev", "operational"))
    if "diff" in call.query:
        change = diff(tree, _tree(switch, call.query["diff"]))
        return Answer(200, find(change, path) if has(change, path) else {})
    if not has(tree, path):
        raise _NotFound(f"nothing is at {'/'.join(path)}")
    return Answer(200, find(tree, path))


def _patch(switch: Switch, call: Call, path: Path) -> Answer:
    revision = _pending(switch, call)
    body = call.json()
    if not isinstance(body, dict):
        raise model.Refused("the body is not of type 'object'")
    if body.keys() == {"set"}:
        body = branch(body, "set")
    elif body.keys() == {"unset"}:
        body = cast("Tree", removal(branch(body, "unset")) or {})
    root = model.completed(cast("Tree", nest(path, body)))
    model.check_patch(root)
    switch.change(revision, merge(revision.tree, root))
    return Answer(200, find(root, path))


def _on_revision(switch: Switch, call: Call, rest: Path) -> Answer:
    if not rest:
        if call.method == "GET":
            return Answer(200, {key: r.document() for key, r in switch.revisions.items()})
        if call.method == "POST":
            made = switch.create_revision()
            return Answer(200, {made.id: made.document()})
        return _problem(405, f"{call.method} is not allowed here")
    if rest == ("applied",):
        return _on_applied(switch, call)
    revision = switch.revisions.get(rest[0])
    if revision is None or len(rest) > 1:
        raise _NotFound(f"no revision {'/'.join(rest)}")
    match call.method:
        case "GET":
            return Answer(200, revision.document())
        case "DELETE":
            if revision.state is not State.PENDING:
                raise NotPending(f"revision {revision.id} is {revision.state}, not pending")
            del switch.revisions[revision.id]
            return Answer(204)
        case "PATCH":
            return _transition(switch, revision, call.json())
        case _:
            return _problem(405, f"{call.method} is not allowed here")


def _on_applied(switch: Switch, call: Call) -> Answer:
    body: Json = {"state": "applied", "transition": {"issue": {}, "progress": ""}}
    if call.method == "PATCH":
        if find(call.json(), ("state",)) != "save":
            raise model.Refused("state: only 'save' is possible on the applied revision")
        switch.save()
        body = {"state": "save", "transition": {"issue": {}, "progress": ""}}
    return Answer(200, body)


def _transition(switch: Switch, revision: Revision, body: Json) -> Answer:
    wanted = find(body, ("state",))
    match wanted:
        case "apply":
            answer: Json = {"state": "apply", "transition": {"issue": {}, "progress": ""}}
            confirm = find(body, ("state-controls", "confirm"))
            switch.apply(
                revision,
                Wanted(
                    ays_yes=find(body, ("auto-prompt", "ays")) == "ays_yes",
                    confirm_yes=find(body, ("auto-prompt", "confirm")) == "confirm_yes",
                    confirm_s=float(confirm) if isinstance(confirm, int | float) else 0.0,
                ),
            )
            return Answer(200, answer)
        case "ays_yes" | "confirm_yes":
            switch.answer(revision, yes=True)
        case "ays_no" | "confirm_no":
            switch.answer(revision, yes=False)
        case "save":
            if revision.state is not State.APPLIED:
                raise NotPending(f"revision {revision.id} is {revision.state}, not applied")
            switch.save()
        case _:
            raise model.Refused(f"state: {wanted!r} is not a state that a client can ask for")
    return Answer(200, revision.document())


def _pending(switch: Switch, call: Call) -> Revision:
    wanted = call.query.get("rev")
    if wanted is None:
        raise model.Refused("rev: a change needs the id of a pending revision")
    revision = switch.revisions.get(wanted)
    if revision is None:
        raise _NotFound(f"no revision {wanted}")
    return revision


def _tree(switch: Switch, name: str) -> Tree:
    match name:
        case "operational":
            return operational(switch)
        case "applied":
            return switch.applied
        case "startup":
            return switch.startup
        case "pending":
            pending = [r for r in switch.revisions.values() if r.state is State.PENDING]
            return pending[-1].tree if pending else switch.applied
        case _:
            revision = switch.revisions.get(name)
            if revision is None:
                raise _NotFound(f"no revision {name}")
            return revision.tree


def _problem(status: int, detail: str) -> Answer:
    title = _TITLES.get(status, "Conflict")
    return Answer(
        status, {"title": title, "status": status, "detail": detail, "type": "about:blank"}
    )
