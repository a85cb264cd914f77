"""The coordinate check holds for the code as it is, and finds each way of breaking the parametrisation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toto_train import coordinates
from toto_train.model import umup
from toto_train.optim import recipe

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

WIDTHS, DEPTHS = (64, 128, 256), (2, 4, 8)


def off(axis: str, rule: str) -> set[str]:
    """Quantities whose exponent is not the expected one, on small models."""
    sizes, fixed = (WIDTHS, 2) if axis == "width" else (DEPTHS, 64)
    return {e.quantity for e in coordinates.fit(coordinates.measure(axis, rule, sizes, fixed, 1)) if not e.held}


@pytest.mark.parametrize("rule", ["spectral", "unit_scaled"])
@pytest.mark.parametrize("axis", ["width", "depth"])
def test_every_rule_has_its_exponents(axis, rule):
    assert off(axis, rule) == set()


def test_a_rate_that_ignores_width_is_found(monkeypatch):
    monkeypatch.setitem(recipe.LR_RULES, "unit_scaled", lambda m, n: 16.0)
    assert off("width", "unit_scaled") == {"moved"}


def test_a_rate_that_ignores_depth_is_found(monkeypatch):
    right = recipe._route_one

    def wrong(name, shapes, depth, config):
        return right(name, shapes, 1, config)

    monkeypatch.setattr(recipe, "_route_one", wrong)
    assert "moved" in off("depth", "spectral")


def test_a_product_without_its_factor_is_found(monkeypatch):
    right = umup.ScaledLinear.__init__

    def wrong(self, fan_in, fan_out, bias, constrained, readout=False):
        right(self, fan_in, fan_out, bias, constrained, readout)
        self.forward_factor = fan_in**-0.25

    monkeypatch.setattr(umup.ScaledLinear, "__init__", wrong)
    assert "logits" in off("width", "unit_scaled")


def test_a_readout_scaled_like_a_hidden_layer_is_found(monkeypatch):
    right = umup.ScaledLinear.__init__

    def wrong(self, fan_in, fan_out, bias, constrained, readout=False):
        right(self, fan_in, fan_out, bias, constrained, readout=False)

    monkeypatch.setattr(umup.ScaledLinear, "__init__", wrong)
    assert "logits" in off("width", "unit_scaled")


def test_residuals_that_ignore_depth_are_found(monkeypatch):
    from toto_train.model import decoder

    monkeypatch.setattr(decoder, "residual_taus", lambda layers, mult, ratio: [(0.5, 0.5)] * layers)
    assert off("depth", "spectral") & {"moved", "stream", "learned"}


def test_the_command_says_pass_and_leaves_its_files(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "coord_check.py"), "rules=adamw", "widths=64,128,256", "depths=2,4",
         "steps=1", f"out={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("PASS: 7 exponents")
    assert (tmp_path / "coord_check.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "coord_check.csv").read_text().splitlines()) > 50


@pytest.mark.parametrize(("argument", "message"), [
    ("widths=64", "two or more"), ("widths=64,100", "multiple of 32"), ("rules=sgd", "must be of spectral"),
    ("steps=0", "must be positive"),
])  # fmt: skip
def test_bad_arguments_are_named(argument, message):
    import coord_check

    with pytest.raises(ValueError, match=message):
        coord_check.main(["--quick", argument])
