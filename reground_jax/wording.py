"""Counts and values in sentences."""


def plural(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown(value: object, length: int = 80) -> str:
    """The repr of a value, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
