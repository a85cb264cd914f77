"""The ablation's CPU time: of a run and the processes it starts, over all its tries."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import ablation

BURN = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < .4: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
sys.exit(3)
"""


def test_a_run_is_charged_for_what_it_starts_and_for_every_try(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(BURN)
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    spent = [0.0]
    for _ in range(2):
        assert ablation.run([f"out={tmp_path}", "name=a"]) == 3
        spent.append(ablation.cpu_seconds(tmp_path / "a"))
    assert spent[1] >= 0.4
    assert spent[2] - spent[1] >= 0.35
    assert ablation.cpu_seconds(tmp_path / "b") == 0


def test_the_table_has_scores_and_minutes():
    lines = ablation.table(
        {"real only": [{"mwql": 1.0, "mase": 2.0}, {"mwql": 4.0, "mase": 2.0}]}, {"real only": [60, 90]}
    )
    assert lines.splitlines()[2] == "| real only | 2.000 | 1.000, 4.000 | 2.000 | 2.000, 2.000 | 2.5 |"
