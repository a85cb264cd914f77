"""Our model <-> the Hugging Face folder of the official Toto 2.0 loader: config.json, model.safetensors, README.md."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toto_train.config import ModelConfig
from toto_train.model.toto import Toto

# Our name -> the official name, for every tensor ({i}: the layer's number). A bijection, checked by a test.
_RESIDUAL = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias", "skip.weight", "skip.bias")
_OUTER = {f"patch_embed.{t}": f"patch_proj.{t.replace('skip', 'skip_proj')}" for t in _RESIDUAL} | {
    f"head.{t}": f"output_head.param_projection.proj.{t.replace('skip', 'skip_proj')}" for t in _RESIDUAL
}
_LAYER = {
    "layers.{i}.attn.in_proj.weight": "transformer.layers.{i}.attn.in_proj.weight",
    "layers.{i}.attn.in_proj.bias": "transformer.layers.{i}.attn.in_proj.bias",
    "layers.{i}.attn.out_proj.weight": "transformer.layers.{i}.attn.out_proj.weight",
    "layers.{i}.attn.out_proj.bias": "transformer.layers.{i}.attn.out_proj.bias",
    "layers.{i}.attn.per_dim_scale": "transformer.layers.{i}.attn._pds.per_dim_scale",
    "layers.{i}.mlp.up.weight": "transformer.layers.{i}.ffn.fc1.weight",
    "layers.{i}.mlp.up.bias": "transformer.layers.{i}.ffn.fc1.bias",
    "layers.{i}.mlp.down.weight": "transformer.layers.{i}.ffn.fc2.weight",
    "layers.{i}.mlp.down.bias": "transformer.layers.{i}.ffn.fc2.bias",
}
# Facts of the architecture that have no knob here; a folder that says otherwise is another model.
_FIXED = {
    "dropout_p": 0.0,
    "num_output_patches": 1,
    "pre_norm": True,
    "heads_per_group": 1,
    "qk_norm": False,
    "norm_include_weight": False,
    "qk_norm_include_weight": False,
    "per_dim_scale": True,
    "use_xpos": True,
}
_SHARED = (
    "patch_size", "d_model", "num_heads", "num_layers", "num_variate_layers_per_group", "variate_layer_first",
    "norm_eps", "attn_bias", "mlp_bias", "d_ff", "residual_mult", "residual_attn_ratio",
)  # fmt: skip


def official_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter name -> official tensor name, for a model of this config."""
    names = dict(_OUTER)
    for i in range(config.num_layers):
        names |= {ours.format(i=i): official.format(i=i) for ours, official in _LAYER.items()}
    if not config.attn_bias:
        names = {k: v for k, v in names.items() if not (".attn." in k and k.endswith(".bias"))}
    if not config.mlp_bias:
        names = {k: v for k, v in names.items() if not (".mlp." in k and k.endswith(".bias"))}
    return names


def to_official(model: Toto) -> dict[str, Tensor]:
    """The tensors of an official checkpoint: fp32 parameters and the tau buffers."""
    names = official_names(model.config)
    out = {names[name]: p.detach().float().cpu().contiguous() for name, p in model.named_parameters()}
    for i, layer in enumerate(model.layers):
        out[f"transformer.layers.{i}.attn_tau"] = torch.tensor(layer.attn_tau)
        out[f"transformer.layers.{i}.mlp_tau"] = torch.tensor(layer.mlp_tau)
    return out


def config_to_official(config: ModelConfig) -> dict[str, object]:
    shared = {key: getattr(config, key) for key in _SHARED}
    return (
        shared
        | _FIXED
        | {
            "layer_group_size": config.layer_group_size or config.num_layers,
            "qk_dim": config.head_dim,
            "v_dim": config.head_dim,
            "num_groups": config.num_heads,
        }
    )


def config_from_official(raw: dict[str, object], name: str) -> ModelConfig:
    """config.json -> ModelConfig. Raises ValueError where the folder describes an architecture we do not build."""
    missing = [key for key in _SHARED if raw.get(key) is None and key != "residual_attn_ratio"]
    if missing:
        raise ValueError(f"{name}: config.json lacks {', '.join(missing)}; is it a Toto 2.0 model?")
    config = ModelConfig(name=name, **{key: raw[key] for key in _SHARED if raw.get(key) is not None})  # type: ignore[arg-type]
    group = int(raw.get("layer_group_size") or config.num_layers)  # type: ignore[call-overload]
    config.layer_group_size = 0 if group == config.num_layers else group
    expected = config_to_official(config)
    # a field that is absent or null in the folder takes the architecture's own value
    wrong = [f"{k}={raw[k]!r} (built here: {v!r})" for k, v in expected.items() if raw.get(k) not in (None, v)]
    if wrong:
        raise ValueError(f"{name}: config.json describes another architecture: {'; '.join(wrong)}")
    return config


def save_pretrained(model: Toto, out: str | Path, card: str, training: Mapping[str, object] | None = None) -> Path:
    """Write the folder (temporary name, then rename; an existing export of the same name is replaced).

    training: facts for training.json, which the official loader ignores; `context_length` is the row length it saw.
    """
    out = Path(out)
    temporary = out.with_name(out.name + ".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    (temporary / "config.json").write_text(json.dumps(config_to_official(model.config), indent=2) + "\n")
    (temporary / "README.md").write_text(card)
    if training:
        (temporary / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    save_file(to_official(model), temporary / "model.safetensors", metadata={"format": "pt"})
    if out.exists():
        if not (out / "config.json").exists():
            shutil.rmtree(temporary)
            raise ValueError(f"{out} exists and is no model folder; choose another out=")
        shutil.rmtree(out)
    os.replace(temporary, out)
    return out


def load_pretrained(path: str | Path) -> Toto:
    """An exported or official folder -> model on CPU. Raises ValueError naming the file and what is wrong with it."""
    path = Path(path)
    for needed in ("config.json", "model.safetensors"):
        if not (path / needed).is_file():
            raise ValueError(f"{path}: no {needed}; expected a model folder such as runs/<name>/export")
    config = config_from_official(json.loads((path / "config.json").read_text()), path.name)
    try:
        tensors = load_file(path / "model.safetensors")
    except Exception as error:  # safetensors raises its own type for truncated and foreign files
        raise ValueError(f"{path / 'model.safetensors'} cannot be read: {error}") from error
    with torch.device("meta"):
        model = Toto(config)
    ours = {}
    for name, parameter in model.named_parameters():
        official = official_names(config)[name]
        if official not in tensors:
            raise ValueError(f"{path}: tensor {official} is missing from model.safetensors")
        if tensors[official].shape != parameter.shape:
            shapes = f"{tuple(tensors[official].shape)}, config.json says {tuple(parameter.shape)}"
            raise ValueError(f"{path}: tensor {official} has shape {shapes}")
        ours[name] = tensors[official].float()
    for i, layer in enumerate(model.layers):
        for tau in ("attn_tau", "mlp_tau"):
            stored = tensors.get(f"transformer.layers.{i}.{tau}")
            if stored is not None:
                setattr(layer, tau, float(stored))
    model.load_state_dict(ours, assign=True)
    return model.requires_grad_(True)


def context_length(path: str | Path, default: int = 4096) -> int:
    """Longest row the model of a folder was trained on; the released models', where the folder does not say."""
    file = Path(path) / "training.json"
    return int(json.loads(file.read_text())["context_length"]) if file.is_file() else default


def model_card(title: str, facts: dict[str, str]) -> str:
    """A short README.md with Hugging Face front matter."""
    rows = "\n".join(f"| {k} | {v} |" for k, v in facts.items())
    return f"""---
license: apache-2.0
library_name: toto-2
pipeline_tag: time-series-forecasting
tags: [time-series, forecasting, toto]
---
# {title}

A Toto 2.0-class forecaster pretrained with toto-train. Load it with the official package:

```python
from toto2 import Toto2Model
model = Toto2Model.from_pretrained("path/to/this/folder")
```

| | |
|---|---|
{rows}
"""
