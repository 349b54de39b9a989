"""Reads any JSON and writes flat objects, without the standard library's json.

The interpreter's C code does the work either way. What importing json adds is `re` and `enum`,
which under an emulated CPU take longer to load than all else that a small function needs. Bad
input is given to json after all, for its error messages.
"""

from _json import encode_basestring_ascii as quoted
from _json import make_scanner


class _Context:
    """What the scanner wants to know; the same as json's defaults."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name):
        raise ValueError(f"{name} is not JSON")


_scan = make_scanner(_Context)


def loads(data):
    """The value that the bytes stand for; raises ValueError or RecursionError."""
    text = data.decode("utf-8").strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):  # the latter stands for json's own error, without json
        end = -1
    if end == len(text):
        return value
    import json

    return json.loads(text)


def line(fields):
    """A dictionary of strings, integers and booleans as one line of JSON."""
    return "{%s}\n" % ",".join(f"{quoted(key)}:{_text(value)}" for key, value in fields.items())


def _text(value):
    if type(value) is bool:
        return "true" if value else "false"
    return str(value) if type(value) is int else quoted(value)
