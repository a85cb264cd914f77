"""The page of pictures: every family is on it, real telemetry comes first, and it needs nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.synthetic.gallery import EACH, real_windows, write_gallery

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real(tmp_path: Path) -> str:
    folder = tmp_path / "recorded"
    folder.mkdir()
    for name in ("host", "us_macro"):  # of both domains
        shutil.copy(ROOT / "quickstart" / f"{name}.parquet", folder)
    return str(folder)


def test_every_family_is_shown_beside_real_telemetry(tmp_path: Path, real: str) -> None:
    page = write_gallery(tmp_path / "gallery.html", ["lead_lag", "sawtooth", "telemetry"], 256, 0, real)
    text = page.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Real telemetry from recorded", "telemetry", "sawtooth", "lead_lag"]
    cards = [section.count("<figure") for section in text.split("<h2>")[1:]]
    assert cards == [3 * EACH, 3 * EACH, EACH, EACH]
    assert text.count("<svg") > sum(cards)  # groups show several variates
    assert not re.search(r"https?://|src=|url\(", text)
    assert "us_macro" not in text
    assert "prefers-color-scheme: dark" in text


def test_real_windows_are_pieces_of_the_real_series(real: str) -> None:
    windows = list(real_windows(real, 200, 12, seed=1))
    assert len(windows) == 12
    for item in windows:
        assert item.domain == "observability"
        assert item.length == 200
        assert len(item.variate_names) == item.variates <= 4
    again = list(real_windows(real, 200, 12, seed=1))
    assert all(np.array_equal(a.values, b.values, equal_nan=True) for a, b in zip(windows, again, strict=True))


def test_the_command_writes_shards_and_the_page(tmp_path: Path) -> None:
    out = tmp_path / "made"
    arguments = ["family=step", "count=4", "length=64", f"out={out}", "gallery=true", "gallery.real="]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "synthesize.py"), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").is_file()
    assert (out / "gallery.html").read_text().count("<figure") == EACH
