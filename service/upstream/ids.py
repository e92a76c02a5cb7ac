"""Reads the ids that an object of upstream's JSON gives itself."""

from service.upstream.names import ROLES, Id
from service.upstream.scalars import JsonObject, id_of


def ids_of(object_: JsonObject) -> tuple[str, ...]:
    """Return the ids that an object gives itself; `id` only where no key says "task"."""
    ids = task_ids_of(object_)
    # Beside `data`, the id of an envelope may be that of the request.
    if ids or "id" not in object_ or isinstance(object_.get("data"), dict):
        return ids
    own = id_of(object_["id"])
    return (own,) if own else ()


def task_ids_of(object_: JsonObject) -> tuple[str, ...]:
    """Return the ids that an object has under keys that name a task."""
    ids = (id_of(value) for name, value in object_.items() if ROLES[name].id == "task")
    return tuple(dict.fromkeys(filter(None, ids)))


def ids_as(object_: JsonObject, *kinds: Id) -> tuple[str, ...]:
    """Return the ids that an object has under keys of these kinds."""
    pairs = ((id_of(v), ROLES[k].id) for k, v in object_.items() if type(v) is str)
    return tuple(dict.fromkeys(id_ for id_, kind in pairs if id_ and kind in kinds))


def disliked_id(*objects: JsonObject) -> str | None:
    """Return the name under which one of the objects has a task's id that no path can hold."""
    for object_ in objects:
        for name, value in object_.items():
            if ROLES[name].id == "task" and value and id_of(value) is None:
                return name
    return None
