"""State of other optimizers under our names: torch.optim.Muon and AdamW, and those of microsoft/dion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toto_train.optim.recipe import canonical


def migrate(*state_dicts: dict[str, Any], names: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """State dicts of other optimizers -> one for `NorMuonAdamW.load_state_dict`, which keeps its own settings.

    Several, because torch.optim.Muon takes matrices only and leaves the rest to a second optimizer. names: for each of
    them the names of its parameters, in the order they were given; not needed where it was made of named parameters.

    | theirs | ours |
    |---|---|
    | torch.optim.Muon momentum_buffer, a mean: M <- mu M + (1 - mu) G | momentum, a sum: divided by 1 - mu |
    | dion (Muon, NorMuon) momentum, a sum | momentum |
    | dion NorMuon variance_neuron [m, 1] | v [m]; zeros where there is none: rows are evened from the next step on |
    | torch.optim.AdamW exp_avg, exp_avg_sq, step | the same |
    | dion adamw momentum, variance, and step of the group | exp_avg, exp_avg_sq, step |
    | none, as of a parameter that never had a gradient | none: it starts anew |

    Raises ValueError on a parameter without a name, on one that two of them hold, and on any other set of keys.
    """
    if names and len(names) != len(state_dicts):
        raise ValueError(f"names are given for {len(names)} of {len(state_dicts)} state dicts")
    out: dict[str, dict[str, Tensor]] = {}
    for i, state_dict in enumerate(state_dicts):
        given = names[i] if names else []
        for group in state_dict["param_groups"]:
            labels = group.get("param_names") or [given[key] if key < len(given) else "" for key in group["params"]]
            for key, label in zip(group["params"], labels, strict=True):
                if not label:
                    raise ValueError(f"parameter {key} has no name; give names= in the order of the parameters")
                name = canonical(label)
                if name in out:
                    raise ValueError(f"{name} is in several state dicts")
                state = state_dict["state"].get(key)
                out[name] = _translate(name, state, group) if state else {}
    return {"state": out}


def _translate(name: str, state: dict[str, Tensor], group: dict[str, Any]) -> dict[str, Tensor]:
    keys = set(state)
    if keys == {"momentum_buffer"}:
        momentum = state["momentum_buffer"].float() / (1 - group["momentum"])
        return {"momentum": momentum, "v": torch.zeros(momentum.shape[0])}
    if keys == {"momentum"}:
        return {"momentum": state["momentum"].float(), "v": torch.zeros(state["momentum"].shape[0])}
    if keys == {"momentum", "variance_neuron"}:
        return {"momentum": state["momentum"].float(), "v": state["variance_neuron"].float().squeeze(-1)}
    if keys == {"momentum", "variance"}:
        step = torch.as_tensor(group["step"], dtype=torch.float32)
        return {"step": step, "exp_avg": state["momentum"], "exp_avg_sq": state["variance"]}
    if keys == {"step", "exp_avg", "exp_avg_sq"}:
        return dict(state)
    raise ValueError(f"{name}: the keys {sorted(keys)} belong to none of the optimizers known here")
