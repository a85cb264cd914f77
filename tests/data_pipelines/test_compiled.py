"""Compiled loops work where nothing can be written, too."""

import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.compiled import compiled

CODE = """
import numpy as np
from data_pipelines.compiled import compiled

@compiled
def total(x):
    out = 0.0
    for value in x:
        out += value
    return out

print(total(np.arange(5.0)))
"""


def test_a_loop_is_compiled():
    @compiled
    def doubled(x):
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = 2 * x[i]
        return out

    assert doubled(np.arange(4)).tolist() == [0, 2, 4, 6]
    assert doubled.machine_code().signatures, "it ran as machine code"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write: /proc")
def test_without_a_place_to_keep_it(tmp_path):
    (tmp_path / "module.py").write_text(CODE)
    (tmp_path / "__pycache__").write_text("a file where the folder would be")
    where = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": "/proc/none", "PYTHONDONTWRITEBYTECODE": "1"}
    where |= {"XDG_CACHE_HOME": "/proc/none"}
    done = subprocess.run(
        [sys.executable, "module.py"], cwd=tmp_path, env=os.environ | where, capture_output=True, text=True
    )
    assert done.stdout.strip() == "10.0", done.stderr
