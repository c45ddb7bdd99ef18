"""JSON from other people's files: what is harmless is read, everything else is a ValueError."""

import pytest

from reground_jax.basics.json_text import parse_json


def test_a_byte_order_mark_is_skipped():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert parse_json('\ufeff{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ('{"a": 1,\n}', "line 2, column 1"),
        ("", "line 1, column 1"),
    ],
)
def test_what_is_not_json_is_a_value_error_with_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 100


def test_duplicate_names_are_refused_where_they_would_matter():
    text = '{"a": {"b": 1, "b": 2}}'
    assert parse_json(text) == {"a": {"b": 2}}
    with pytest.raises(ValueError, match="the name 'b' appears twice"):
        parse_json(text, unique=True)
    assert parse_json('{"a": [{"b": 1}, {"b": 2}]}', unique=True) == {"a": [{"b": 1}, {"b": 2}]}
