"""Short forms of values that hold arrays: shapes and dtypes instead of a million numbers."""

from typing import Any


def short(value: Any) -> str:
    """An array as float32[2,77,768], dicts and tuples by their contents, anything else by repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {short(part)}' for key, part in value.items())}}}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        shown = [short(part) for part in value[:2]]
        more = [f"and {len(value) - 2} more"] if len(value) > 2 else []
        return f"({', '.join(shown + more)}{',' if len(value) == 1 else ''})"
    return repr(value)


def short_repr(self: Any) -> str:
    """`__repr__` of a NamedTuple of arrays."""
    fields = zip(self._fields, self, strict=True)
    return f"{type(self).__name__}({', '.join(f'{name}={short(part)}' for name, part in fields)})"
