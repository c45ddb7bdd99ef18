"""Command line options made from the fields of a dataclass (see reground_jax/basics/options.py)."""

import argparse
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from reground_jax.basics.options import Option, options
from reground_jax.cli.parser import Parser

T = TypeVar("T")


def add_options(
    parser: Parser,
    cls: type,
    *,
    only: Collection[str] | None = None,
    omit: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    source: str = "",
) -> None:
    """Adds an option for each field of `cls`, or only for those in `only`, to its group.

    Options that are not given stay out of the namespace. defaults: those of this command, for help,
    where they differ from the class. source: where else defaults come from, such as "the model's".
    """
    for field, option in options(cls).items():
        if field in omit or only is not None and field not in only:
            continue
        default = getattr(cls, field)
        shown = shown_default(default, source)
        if defaults is not None and field in defaults:
            default = defaults[field]
            shown = shown_default(default, "")
        add_option(parser, field, option, f"{option.help} (default: {shown})" if shown else None)


def add_option(parser: Parser, field: str, option: Option, text: str | None = None) -> None:
    """Adds one option. text: help that replaces its own."""
    keywords: dict[str, Any] = {"dest": field, "default": argparse.SUPPRESS}
    keywords["help"] = (text or option.help).replace("%", "%%")
    if option.metavar:
        keywords |= {"metavar": option.metavar, "type": reader(option.read)}
    else:
        keywords["action"] = "store_true"
    parser.group(option.group).add_argument(option.name, **keywords)
    parser.alias(option.name, *option.aliases)
    if option.words:
        parser.lists[option.name] = option.words


def given(arguments: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of `cls` that the command line gives."""
    return {name: getattr(arguments, name) for name in options(cls) if hasattr(arguments, name)}


def made(cls: type[T], arguments: argparse.Namespace, **defaults: Any) -> T:
    """A `cls` from the given options, else this command's defaults, else the class's own."""
    return cls(**defaults | given(arguments, cls))


def shown_default(default: Any, source: str) -> str:
    """A default as shown in help; empty if there is nothing to show."""
    if default is None or default is False:
        return f"{source} own" if source and default is None else ""
    items = default if isinstance(default, tuple) else (default,)
    text = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)
    return f"{source}, or {text}" if source else text


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wraps `read` for argparse, which shows the message of only one type of error."""

    def typed(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return typed
