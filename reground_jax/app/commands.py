"""The command line and the Python that make the same picture."""

import shlex
from collections.abc import Mapping
from typing import Any

from reground_jax.amounts import amount_text
from reground_jax.app.order import Order
from reground_jax.attention_guidance import AttentionGuidance, attention_guidance, guidance_text
from reground_jax.basics.options import options
from reground_jax.basics.wording import slug
from reground_jax.layout import Layout
from reground_jax.settings import AMOUNTS, Settings


def file_name(order: Order, column: str) -> str:
    """The name of a picture's file without a folder, such as "a-cat-0-gligen.png"."""
    return f"{slug(order.layout.prompt)}-{order.seed}-{slug(column)}.png"


def command_lines(order: Order, recommended: Settings) -> str:
    """A `reground-jax generate` for each column.

    Settings that the model recommends are left out. Raises ValueError for those that no command
    line can say.
    """
    lines = []
    for name, settings in order.columns.items():
        words = ["reground-jax", "generate", "--model", order.model, *_layout_words(order.layout)]
        for field, value in _changed(settings, recommended).items():
            option = options(Settings)[field]
            words += [option.name] if value is True else _pair(option.name, _text(field, value))
        words += ["--seed", str(order.seed), "--out", file_name(order, name)]
        lines.append(_folded(words))
    return "\n\n".join(lines)


def python_code(order: Order, recommended: Settings) -> str:
    """A program that makes the pictures of all columns."""
    layout, dtype = order.layout, order.settings.dtype
    lines = [
        "from reground_jax import Layout, Pipeline",
        "",
        f"pipe = Pipeline.load({order.model!r}, dtype={dtype or 'float32'!r})",
        "layout = Layout(",
        f"    {layout.prompt!r},",
    ]
    if layout.boxes:
        lines += ["    phrases=[" + ", ".join(map(repr, layout.phrases)) + "],"]
        lines += ["    boxes=[", *(f"        {box}," for box in layout.boxes), "    ],"]
    if layout.negative_prompt:
        lines.append(f"    negative_prompt={layout.negative_prompt!r},")
    lines.append(")")
    for name, settings in order.columns.items():
        changed = _changed(settings, recommended)
        keywords = {"wiring": settings.wiring, **changed, "seeds": order.seed}
        keywords.pop("dtype", None)
        words = ", ".join(f"{key}={_python(value)}" for key, value in keywords.items())
        lines.append(f"(image,) = pipe(layout, {words})")
        lines.append(f"image.save({file_name(order, name)!r})")
    return "\n".join(lines) + "\n"


def _changed(settings: Settings, recommended: Settings) -> Mapping[str, Any]:
    return {field: getattr(settings, field) for field in settings.diff(recommended)}


def _layout_words(layout: Layout) -> list[str]:
    words = _pair("--prompt", layout.prompt)
    for phrase, box in zip(layout.phrases, layout.boxes, strict=True):
        words += _pair("--box", f"{phrase}@{','.join(f'{side!r}' for side in box)}")
    if layout.negative_prompt:
        words += _pair("--negative-prompt", layout.negative_prompt)
    return words


def _pair(option: str, value: str) -> list[str]:
    """An option and its value; one word if the value looks like an option."""
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def _text(field: str, value: Any) -> str:
    """A setting's value as its option reads it."""
    if isinstance(value, str):
        return value
    if _has_text(value):
        return guidance_text(value)
    if field in AMOUNTS and isinstance(value, tuple):
        return amount_text(value)
    if isinstance(value, tuple):
        return ("/" if len(value) == 3 else ",").join(map(repr, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"no command line says {field}={value}; the Python does")
    return repr(value)


def _python(value: Any) -> str:
    if isinstance(value, AttentionGuidance):
        value = guidance_text(value) if _has_text(value) else value.to_json()
    return repr(value)


def _has_text(value: Any) -> bool:
    """Whether a method of attention guidance can be written on a command line."""
    if not isinstance(value, AttentionGuidance):
        return False
    try:
        return attention_guidance(guidance_text(value)) == value
    except ValueError:
        return False


def _folded(words: list[str]) -> str:
    """A shell's command over several lines, an option on each."""
    lines = [shlex.join(words[:4])]
    for word in map(shlex.quote, words[4:]):
        if word.lstrip("'").startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n    ".join(lines)
