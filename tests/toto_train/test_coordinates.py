"""The coordinate check holds for the code as it is, and finds each way of breaking the parametrisation."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from toto_train import coordinates
from toto_train.coordinates import RULES
from toto_train.model import umup
from toto_train.optim import recipe

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

WIDTHS, DEPTHS = (64, 128, 256), (2, 4, 8)


def off(axis: str, rule: str, qk_norm: bool = False) -> set[str]:
    """Quantities whose exponent is not the expected one, on small models."""
    sizes, fixed = (WIDTHS, 2) if axis == "width" else (DEPTHS, 64)
    found = coordinates.fit(coordinates.measure(axis, rule, sizes, fixed, 1, qk_norm=qk_norm))
    return {e.quantity for e in found if not e.held}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("axis", ["width", "depth"])
def test_every_rule_has_its_exponents(axis, rule):
    assert off(axis, rule) == set()


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_they_hold_with_normed_queries_and_keys(axis):
    assert off(axis, "unit_scaled", qk_norm=True) == set()


BROKEN = {
    "spectral": lambda m, n: math.sqrt(m) / 8,  # all are the right ones at width 64
    "unit_scaled": lambda m, n: 8.0,
    "original": lambda m, n: math.sqrt(max(1.0, m / 64)),
    "match_rms_adamw": lambda m, n: 1.6,
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_wrong_rule_is_found_over_width(rule, monkeypatch):
    """A root of m or n left out, as one would by mistake."""
    monkeypatch.setitem(recipe.LR_RULES, rule, BROKEN[rule])
    assert off("width", rule) == {"moved"}


def reroute(monkeypatch, change) -> None:
    """change(right, name, shapes, depth, config) decides instead of `_route_one`, with which it may begin."""
    monkeypatch.setattr(recipe, "_route_one", partial(change, recipe._route_one))


def test_adamw_without_its_fan_in_is_found(monkeypatch):
    def change(right, name, shapes, depth, config):
        found = right(name, shapes, depth, config)
        if not found.reason.startswith("stack matrix"):
            return found
        return dataclasses.replace(found, multiplier=found.multiplier * math.sqrt(found.shape[1]) / 8)

    reroute(monkeypatch, change)
    assert off("width", "adamw") == {"moved"}


@pytest.mark.parametrize("rule", RULES)
def test_a_rate_that_ignores_depth_is_found(rule, monkeypatch):
    reroute(monkeypatch, lambda right, name, shapes, depth, config: right(name, shapes, 1, config))
    assert "moved" in off("depth", rule)


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
    ("steps=0", "must be positive"), ("seeds=0", "seeds=0 must be positive"),
])  # fmt: skip
def test_bad_arguments_are_named(argument, message):
    import coord_check

    with pytest.raises(ValueError, match=message):
        coord_check.main(["--quick", argument])
