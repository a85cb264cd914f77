"""Export a run as a Hugging Face folder: python scripts/export_hf.py run=runs/quickstart out=DIR [checkpoint=best|last]

Takes the checkpoint that validation chooses (the default; the last where none was validated), or the run's last, and
writes config.json, model.safetensors and README.md, which the official
toto-2 package loads unchanged: Toto2Model.from_pretrained(DIR).
"""

from __future__ import annotations

import sys

from toto_train import checkpoint, hub
from toto_train.arguments import fail_on, parse


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"run": str, "out": str}, optional={"checkpoint": "best"})
    model, meta = checkpoint.load_model(args["run"], args["checkpoint"])
    facts = {
        "model": f"{model.config.name}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "exported checkpoint": checkpoint.describe(args["run"], meta),
        "observed points seen": f"{meta['points']:,}",
        "seed": str(meta["config"]["seed"]),
    }
    title = f"{meta['config']['name']}: a {model.config.name} Toto 2.0-class forecaster"
    training = {"context_length": meta["config"]["data"]["length"], "steps": meta["step"], "points": meta["points"]}
    out = hub.save_pretrained(model, args["out"], hub.model_card(title, facts), training)
    print(f"exported step {meta['step']} of {args['run']} -> {out}")
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="export_hf"):
        sys.exit(main(sys.argv[1:]))
