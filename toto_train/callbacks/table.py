"""CSV files of a run that grow while it trains: metrics.csv, sources.csv, losses.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toto_train.files import naming


class Table:
    """Lines under named columns, the first of which is `step`; those after the step a run resumes from are cut."""

    def __init__(self, path: Path, columns: Sequence[str], start_step: int, writes: bool = True):
        """writes: False on all ranks but the first, which leave the file alone."""
        self.path, self.columns, self.writes = path, columns, writes
        self.last: dict[str, Any] = {}
        """The line that a resumed run goes on behind, as text; empty where there is none."""
        if not writes:
            return
        kept = [row for row in self._whole() if int(row["step"]) <= start_step]
        temporary = path.with_name(path.name + ".tmp")
        with naming(path), temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)
        self.last = kept[-1] if kept else {}

    def _whole(self) -> list[dict[str, str]]:
        """Lines of the file, whatever its columns; a killed run may have left the last one half written."""
        if not self.path.exists():
            return []
        lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = csv.DictReader(lines, restval="")
        return [row for row in rows if row.get("step", "").isdigit() and None not in row]

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines; a column may be left out of them. One write, so that a line is there or is not."""
        if self.writes:
            with naming(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerows(rows)
