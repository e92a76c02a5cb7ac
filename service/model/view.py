"""Fields of the data types as the API shows them."""

from typing import Any

import msgspec

from service.model.clock import rfc3339_or_none


def view_of(struct: msgspec.Struct, *names: str) -> dict[str, Any]:
    """Return these fields of a struct, in this order; times, `*_at`, become RFC 3339 text."""
    view = {name: getattr(struct, name) for name in names}
    return view | {n: rfc3339_or_none(at) for n, at in view.items() if n.endswith("_at")}
