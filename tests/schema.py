# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""As much of JSON Schema as the schemas in docs/ use; what they use beyond it is an error."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
}
_WORDS = {"$schema", "$comment", "title", "description"}
_KNOWN = _WORDS | {
    *("type", "required", "additionalProperties", "properties", "items", "pattern", "minimum"),
}


def check(value: Any, schema: dict[str, Any], place: str = "$") -> None:
    """Fails where ``value`` is not what the schema says."""
    assert set(schema) <= _KNOWN, f"{place}: the schema has {set(schema) - _KNOWN}"
    wanted = schema.get("type")
    if wanted is not None:
        assert isinstance(value, _TYPES[wanted]), f"{place}: {value!r} is no {wanted}"
        assert wanted != "integer" or not isinstance(value, bool), f"{place}: {value!r}"
    if "minimum" in schema:
        assert value >= schema["minimum"], f"{place}: {value!r}"
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), f"{place}: {value!r}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value), f"{place}: {sorted(value)}"
        assert schema.get("additionalProperties", True) or set(value) <= set(properties), (
            f"{place}: {set(value) - set(properties)}"
        )
        for name, part in value.items():
            check(part, properties.get(name, {}), f"{place}.{name}")
    if isinstance(value, list):
        for number, part in enumerate(value):
            check(part, schema.get("items", {}), f"{place}[{number}]")
