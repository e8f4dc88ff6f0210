"""The sagas of volumes. None has nodes: the volume is their one target, and the storage's
reconciler does what they ask for."""

from dflare.kit.plan import Plan, PlannedStep

_WEEK_S = 7 * 24 * 3600
"""A storage may take long to remove a large volume, and nobody but it can."""

CREATE_VOLUME = Plan(
    saga="create_volume",
    steps=(
        PlannedStep(
            name="volumes.begin@1",
            on="resource",
            per_site=False,
            deadline_s=120,
            undo="volumes.fail@1",
        ),
        PlannedStep(
            name="volumes.provide@1",
            on="resource",
            deadline_s=300,
            undo="volumes.withdraw@1",
            undo_deadline_s=7200,
        ),
        # No undo: it only waits; what it waits for is taken back by the undo of provide.
        PlannedStep(name="volumes.await@1", on="resource", deadline_s=900),
        # The commit step, and no undo: from here the tenant has the volume and pays for it.
        PlannedStep(
            name="volumes.ready@1", on="resource", per_site=False, deadline_s=120, commit=True
        ),
    ),
)

RESIZE_VOLUME = Plan(
    saga="resize_volume",
    steps=(
        PlannedStep(
            name="volumes.set_size@1",
            on="resource",
            deadline_s=300,
            undo="volumes.size_back@1",
            undo_deadline_s=7200,
        ),
        # No undo: it only waits; what it waits for is taken back by the undo of set_size.
        PlannedStep(name="volumes.await@1", on="resource", deadline_s=900),
        # The commit step, and no undo: from here the tenant has the new size and pays for it.
        PlannedStep(
            name="volumes.resized@1", on="resource", per_site=False, deadline_s=120, commit=True
        ),
    ),
)

# Nothing of a release has an undo: one that was asked for goes forward, and its name is free only
# when the storage was seen to hold nothing of it any more.
DELETE_VOLUME = Plan(
    saga="delete_volume",
    steps=(
        PlannedStep(
            name="volumes.begin_delete@1",
            on="resource",
            per_site=False,
            deadline_s=120,
            commit=True,
        ),
        PlannedStep(name="volumes.remove@1", on="resource", deadline_s=300),
        PlannedStep(name="volumes.await_removed@1", on="resource", deadline_s=_WEEK_S),
        PlannedStep(name="volumes.deleted@1", on="resource", per_site=False, deadline_s=120),
    ),
)

VOLUME_SAGAS = (CREATE_VOLUME, RESIZE_VOLUME, DELETE_VOLUME)
