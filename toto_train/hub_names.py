"""Our names and settings <-> those of the official Toto 2.0 checkpoints."""

from __future__ import annotations

from toto_train import sizes
from toto_train.config import Config, ModelConfig
from toto_train.config_check import check

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
    "norm_include_weight": False,
    "qk_norm_include_weight": False,
    "per_dim_scale": True,
    "use_xpos": True,
}
_UNSAID = ("per_dim_scale", "use_xpos")
"""Those that the official package takes for false where a folder does not say."""
_SHARED = (
    "patch_size", "d_model", "num_heads", "num_layers", "num_variate_layers_per_group", "variate_layer_first",
    "norm_eps", "attn_bias", "mlp_bias", "d_ff", "qk_norm", "residual_mult", "residual_attn_ratio",
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


def config_to_official(config: ModelConfig) -> dict[str, object]:
    """The fields of config.json."""
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
    """config.json -> ModelConfig, named as the size of configs/model it equals, else `name`.

    Raises ValueError where the folder describes an architecture we do not build.
    """
    missing = [key for key in (*_SHARED, *_UNSAID) if raw.get(key) is None and key != "residual_attn_ratio"]
    if missing:
        raise ValueError(f"{name}: config.json lacks {', '.join(missing)}; is it a Toto 2.0 model?")
    given = {key: raw[key] for key in (*_SHARED, "layer_group_size") if raw.get(key) is not None}
    if wrong := [f"{k}={v!r}" for k, v in given.items() if not _fits(v, getattr(ModelConfig, k))]:
        raise ValueError(f"{name}: config.json has values of the wrong type: {', '.join(wrong)}")
    config = ModelConfig(name=name, **given)  # type: ignore[arg-type]
    if config.layer_group_size == config.num_layers:
        config.layer_group_size = 0
    if wrong := [p for p in check(Config(model=config, plan=True)) if p.startswith("model.")]:
        raise ValueError(f"{name}: config.json describes no model: {'; '.join(wrong)}")
    expected = config_to_official(config)
    # a field that is absent or null in the folder takes the architecture's own value
    wrong = [f"{k}={raw[k]!r} (built here: {v!r})" for k, v in expected.items() if raw.get(k) not in (None, v)]
    if wrong:
        raise ValueError(f"{name}: config.json describes another architecture: {'; '.join(wrong)}")
    config.name = sizes.name_of(config) or name
    return config


def _fits(value: object, default: object) -> bool:
    """Whether a value of config.json has the type of a setting; whole numbers are floats, too."""
    return type(value) is type(default) or (type(default) is float and type(value) is int)
