"""Files of a run where the disk is full."""

import errno
import os
from pathlib import Path

import pytest

from toto_train.callbacks.table import Table
from toto_train.files import whole, write_text


def test_a_file_that_a_full_disk_does_not_take_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` raises it

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'config.yaml'}'"):
            write_text(tmp_path / "config.yaml", "name: mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_table_that_a_full_disk_does_not_take_is_named(tmp_path):
    table = Table(tmp_path / "metrics.csv", ["step"], 0)
    table.path.unlink()
    table.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{table.path}'"):
        table.write([{"step": 1}])


def test_other_errors_inside_stay_what_they_are(tmp_path):
    with pytest.raises(ConnectionResetError, match=r"^peer$"), whole(tmp_path / "file"):
        raise ConnectionResetError("peer")
