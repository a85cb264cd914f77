"""The sizes that have a name: configs/model/*.yaml beside the package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from toto_train.config import ModelConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "model"


def architecture(model: ModelConfig) -> dict[str, Any]:
    """What decides the function a model computes: all but its name, one group of all layers written in one way."""
    found = {k: v for k, v in dataclasses.asdict(model).items() if k != "name"}
    return found | {"layer_group_size": model.layer_group_size or model.num_layers}


def name_of(model: ModelConfig) -> str:
    """Name of the size with this architecture, the first by the alphabet; empty where none has it."""
    for file in sorted(FOLDER.glob("*.yaml")):
        known = ModelConfig(**OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]
        if architecture(known) == architecture(model):
            return known.name
    return ""
