"""Our model <-> the Hugging Face folder of the official Toto 2.0 loader: config.json, weights, README.md.

The weights are model.safetensors, or above a size limit model-0000i-of-0000N.safetensors with an index that says which
tensor lies in which file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from toto_train.config import ModelConfig
from toto_train.files import whole_folder
from toto_train.hub_names import config_from_official, config_to_official, official_names
from toto_train.model.toto import Toto
from toto_train.tensors import copy_into, full

log = logging.getLogger(__name__)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
"""The Hub's own limit for a file of a sharded model; of the released sizes only xxl is larger."""
DTYPES = ("F32", "BF16", "F16", "F64")


def to_official(model: Toto) -> dict[str, Tensor]:
    """The tensors of an official checkpoint: fp32 parameters and the tau buffers."""
    return {name: _stored(tensor) for name, tensor in _references(model).items()}


def _references(model: Toto) -> dict[str, Tensor]:
    """Official name -> the model's own tensor, wherever it lies, in the model's order."""
    names = official_names(model.config)
    return {names[name]: p.detach() for name, p in model.named_parameters()} | taus(model)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.float().cpu().contiguous()


def taus(model: Toto) -> dict[str, Tensor]:
    """Weights of the residual branches, which config.json decides and an official checkpoint stores as well."""
    out = {}
    for i, layer in enumerate(model.layers):
        out[f"transformer.layers.{i}.attn_tau"] = torch.tensor(layer.attn_tau)
        out[f"transformer.layers.{i}.mlp_tau"] = torch.tensor(layer.mlp_tau)
    return out


def save_pretrained(
    model: Toto,
    out: str | Path,
    card: str,
    training: Mapping[str, object] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the folder (temporary name, then rename; an existing export of the same name is replaced).

    training: facts for training.json, which the official loader ignores; `context_length` is the row length it saw.
    Weights beyond max_shard_bytes are split; besides the model, one shard at a time is in memory.
    """
    out = Path(out)
    with whole_folder(out, "model folder", lambda folder: (folder / "config.json").is_file()) as folder:
        (folder / "config.json").write_text(json.dumps(config_to_official(model.config), indent=2) + "\n")
        (folder / "README.md").write_text(card)
        if training:
            (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
        _save_weights(model, folder, max_shard_bytes)
    return out


def _save_weights(model: Toto, folder: Path, max_shard_bytes: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    tensors = _references(model)
    sizes = {name: torch.empty(t.shape, device="meta") for name, t in tensors.items()}  # fp32, whatever the model is in
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_bytes)
    for file, names in split.filename_to_tensors.items():
        save_file({name: _stored(tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def load_pretrained(path: str | Path) -> Toto:
    """An exported or official folder -> model on CPU. Raises ValueError naming the file and what is wrong with it."""
    with torch.device("meta"):
        model = Toto(read_config(path))
    model.to_empty(device="cpu")
    load_weights(path, model)
    return model


def read_config(path: str | Path) -> ModelConfig:
    """Model config of a folder."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"{path}: no config.json; expected a model folder such as runs/<name>/export")
    return config_from_official(_read_json(file), Path(path).resolve().name)


def check_folder(path: str | Path) -> ModelConfig:
    """Model config of a folder whose weights are all there in the right shapes; only headers are read."""
    config = read_config(path)
    with torch.device("meta"):
        model = Toto(config)
    _check_tensors(Path(path), {name: tuple(t.shape) for name, t in _references(model).items()})
    return config


@torch.no_grad()
def load_weights(path: str | Path, model: Toto) -> None:
    """Copy a folder's tensors into a model of the same config, in place, on any device, sharded or not, one at a time.

    Files are mapped into memory, so nothing but the model and the tensor at hand is held.
    """
    folder, targets, expected_taus = Path(path), _references(model), taus(model)
    files = _check_tensors(folder, {name: tuple(t.shape) for name, t in targets.items()})
    converted: Counter[str] = Counter()
    for file in sorted(set(files.values())):
        with safe_open(file, "pt") as stored:
            for name in (n for n, f in files.items() if f == file):
                tensor = stored.get_tensor(name)
                if tensor.dtype != torch.float32:
                    converted[str(tensor.dtype).removeprefix("torch.")] += 1
                if name in expected_taus:
                    _check_tau(file, name, tensor, expected_taus[name])
                else:
                    copy_into(targets[name], tensor)
    for dtype, count in converted.items():
        log.warning("%s: %d tensors are %s; converted to float32", folder, count, dtype)


def refuse_non_finite(model: Toto, where: str | Path) -> None:
    if bad := [name for name, p in model.named_parameters() if not bool(full(p.detach()).isfinite().all())]:
        raise ValueError(f"{where}: {bad[0]} and {len(bad) - 1} more tensors hold NaN or infinite values")


def _check_tau(file: Path, name: str, stored: Tensor, expected: Tensor) -> None:
    """Residual weights follow from config.json here; a folder that was made with others is another model."""
    tolerance = 2 * max(torch.finfo(stored.dtype).eps, torch.finfo(torch.float32).eps)
    if not abs(float(stored) / float(expected) - 1) <= tolerance:
        raise ValueError(
            f"{file}: tensor {name} is {float(stored):.6g}, but residual_mult and residual_attn_ratio of config.json "
            f"give {float(expected):.6g}"
        )


def _check_tensors(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """Tensor name -> its file; raises ValueError unless the folder holds exactly tensors of these names and shapes."""
    files = _weight_map(folder)
    for name in expected:
        if name not in files:
            raise ValueError(f"{folder}: tensor {name} is missing from {_listing(folder)}")
    for file in sorted(set(files.values())):
        header = _header(file)
        for name in (n for n, f in files.items() if f == file):
            if name not in header:
                raise ValueError(f"{file}: tensor {name} is missing, which {_listing(folder)} promises")
            if name not in expected:
                raise ValueError(f"{file}: unknown tensor {name}; these are weights of another architecture")
            shape, dtype = header[name]
            if shape != expected[name]:
                raise ValueError(f"{file}: tensor {name} has shape {shape}, config.json says {expected[name]}")
            if dtype not in DTYPES:
                raise ValueError(f"{file}: tensor {name} is {dtype}; weights must be one of {', '.join(DTYPES)}")
    return files


def _listing(folder: Path) -> str:
    return SINGLE if (folder / SINGLE).is_file() else INDEX


def _weight_map(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it; every file is there."""
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_header(folder / SINGLE), folder / SINGLE)
    index = folder / INDEX
    if not index.is_file():
        raise ValueError(f"{folder}: no {SINGLE} (or {INDEX}); expected a model folder such as runs/<name>/export")
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(v, str) and Path(v).name == v for v in names.values()):
        raise ValueError(f"{index}: weight_map must say in which file beside it each tensor lies")
    missing = sorted({file for file in names.values() if not (folder / file).is_file()})
    if missing:
        raise ValueError(f"{index} names {', '.join(missing)}, missing from the folder; fetch the folder again")
    return {name: folder / file for name, file in names.items()}


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of a file's tensors."""
    try:
        with safe_open(file, "pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: no JSON object")
    return found


def origin(path: str | Path) -> dict[str, Any]:
    """What an import remembers of a folder: its files by size and sha256, its card and its training facts."""
    folder = Path(path)
    files = {}
    for file in sorted({folder / "config.json", *_weight_map(folder).values()}):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    card, facts = folder / "README.md", folder / "training.json"
    return {
        "path": str(path),
        "files": files,
        "card": card.read_text() if card.is_file() else f"# {folder.resolve().name}\n",
        "training": _read_json(facts) if facts.is_file() else {"context_length": context_length(folder)},
    }


def context_length(path: str | Path, default: int = 4096) -> int:
    """Longest row the model of a folder was trained on; the released models', where the folder does not say."""
    file = Path(path) / "training.json"
    return int(_read_json(file)["context_length"]) if file.is_file() else default


def model_card(title: str, facts: dict[str, str], load_from: str = '"path/to/this/folder"') -> str:
    """A short README.md with Hugging Face front matter. load_from: Python that gives the official loader its folder."""
    rows = "\n".join(f"| {k} | {v} |" for k, v in facts.items())
    imports = "from huggingface_hub import snapshot_download\n" if "snapshot_download" in load_from else ""
    return f"""---
license: apache-2.0
library_name: toto-2
pipeline_tag: time-series-forecasting
tags: [time-series, forecasting, toto]
---
# {title}

A Toto 2.0-class forecaster pretrained with toto-train. Load it with the official package:

```python
{imports}from toto2 import Toto2Model
model = Toto2Model.from_pretrained({load_from})
```

| | |
|---|---|
{rows}
"""
