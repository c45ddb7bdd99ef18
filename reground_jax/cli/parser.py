"""argparse with aliases, lists separated by commas or spaces, and errors as ValueError."""

import argparse
import difflib
import re
import sys
import textwrap
from collections import deque
from collections.abc import Iterable
from typing import Any, NoReturn

WIDTH = 100  # columns of a description


class Parser(argparse.ArgumentParser):
    """A parser that reports bad input as a ValueError of one sentence.

    aliases  other programs' name for an option -> the option: accepted, but left out of help
    lists    options that take several words -> the pattern of such a word. argparse's own lists
             would take a following prompt as another item
    """

    def __init__(self, *, description: str = "", **keywords: Any):
        super().__init__(
            description=textwrap.fill(description, WIDTH),
            formatter_class=argparse.RawDescriptionHelpFormatter,  # examples keep their lines
            allow_abbrev=False,
            **keywords,
        )
        self.aliases: dict[str, str] = {}
        self.lists: dict[str, str] = {}
        self._by_title: dict[str, argparse._ArgumentGroup] = {}

    @property
    def actions(self) -> list[argparse.Action]:
        """All options and arguments, in the order of their declaration."""
        return self._actions

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The group with this heading. Help lists groups in the order of their first use."""
        if title not in self._by_title:
            self._by_title[title] = self.add_argument_group(title)
        return self._by_title[title]

    def alias(self, option: str, *others: str) -> None:
        for other in others:
            assert other not in self.aliases, f"{other} is {self.aliases[other]} already"
            self.aliases[other] = option

    def parse_known_args(  # type: ignore[override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(self._spelled_out(given), namespace)

    def _spelled_out(self, given: Iterable[str]) -> list[str]:
        """Replaces aliases and joins lists: `-o x --seeds 0 1` -> `--out x "--seeds=0 1"`."""
        words, spelled = deque(given), []
        while words:
            word = words.popleft()
            if word == "--":
                return [*spelled, word, *words]
            name, equals, value = word.partition("=")
            name = self.aliases.get(name, name)
            items = [value] if equals else []
            while name in self.lists and words and re.fullmatch(self.lists[name], words[0]):
                items.append(words.popleft())
            spelled.append(f"{name}={' '.join(items)}" if items else name)
        return spelled

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")

    def refuse(self, unknown: str) -> NoReturn:
        """Raises ValueError for a word that this command does not take, with the nearest option."""
        name = unknown.partition("=")[0]
        if not name.startswith("-"):
            self.error(f"{unknown!r} is one argument too many: put text with spaces in quotes")
        known = {option: option for option in self._option_string_actions} | self.aliases
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {known[near[0]]}? See" if near else "see"
        raise ValueError(f"{name} is not an option of `{self.prog}`: {hint} `{self.prog} --help`")
