"""Results as JSON: a file that a line at a time is added to, whole whenever the process is killed."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Lines:
    """JSON objects by the field `key`; of two with one key the later holds. A torn last line is cut off."""

    def __init__(self, file: Path, key: str = "configuration"):
        self.file, self.key = file, key
        self.lines: dict[str, dict[str, Any]] = {}
        if not file.is_file():
            return
        end = 0
        for line in file.read_bytes().splitlines(keepends=True):
            try:
                found = json.loads(line) if line.endswith(b"\n") else {}
                self.lines[str(found[key])] = found
            except (ValueError, TypeError, KeyError):
                log.warning("%s: cut off after %d lines, the rest is scored again", file, len(self.lines))
                os.truncate(file, end)
                return
            end += len(line)

    def add(self, line: dict[str, Any]) -> None:
        """Append; on the disk when this returns."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines[str(line[self.key])] = line


def without_nan(value: Any) -> Any:
    """NaN and infinity are no JSON; None is."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
