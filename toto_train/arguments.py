"""Hydra-style key=value arguments for the small commands (train.py composes with Hydra itself)."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def parse(doc: str | None, argv: list[str], required: dict[str, type], optional: dict[str, Any]) -> dict[str, Any]:
    """Parse ['key=value', ...] into a dict. `required`: key -> type; `optional`: key -> default (its type is kept).

    Every problem is collected and reported at once (exit status 2); --help prints `doc`.
    """
    if {"-h", "--help"} & set(argv):
        print((doc or "").strip())
        raise SystemExit(0)
    types = required | {k: type(v) for k, v in optional.items()}
    values, problems = dict(optional), []
    for arg in argv:
        key, sign, text = arg.partition("=")
        if not sign:
            problems.append(f"{arg!r} is not key=value")
        elif key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(types)}"
            problems.append(f"unknown key {key!r}{hint}")
        else:
            try:
                values[key] = _convert(text, types[key])
            except ValueError:
                problems.append(f"{key}={text!r} is not a valid {types[key].__name__}")
    problems += [f"missing {key}=" for key in required if key not in values]
    if problems:
        print("\n".join(problems) + f"\nusage: {(doc or '').strip()}", file=sys.stderr)
        raise SystemExit(2)
    return values


@contextmanager
def fail_on(*kinds: type[Exception], name: str) -> Iterator[None]:
    """Turn the errors a user can cause into one line on stderr and exit status 1."""
    try:
        yield
    except kinds as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _convert(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return text if kind is type(None) else kind(text)
