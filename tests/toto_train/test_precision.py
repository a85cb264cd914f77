"""What a run says where its precision costs more than it saves."""

import pytest

QUICK = ("schedule.max_steps=1", "schedule.warmup_steps=0", "schedule.decay_steps=1")


@pytest.mark.parametrize("has", [False, True])
def test_bf16_without_instructions_for_it_is_told(train_here, monkeypatch, caplog, has):
    monkeypatch.setattr("toto_train.run.multiplies_bf16", lambda device: has)
    train_here(*QUICK, "parallel.precision=bf16")
    assert ("parallel.precision=bf16 will be slow: this cpu has no instructions for bf16" in caplog.text) is not has
