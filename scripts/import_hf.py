"""Import an official model: python scripts/import_hf.py path=DIR out=DIR

path= is a Toto 2.0 folder (config.json and model.safetensors, or its shards with model.safetensors.index.json), as
`hf download ORG/NAME --local-dir DIR` fetches it, or an export of ours. out= becomes a run folder with the weights as
the checkpoint of step 0: train.py init_from=DIR trains from them, evaluate.py model=DIR scores them, export_hf.py
run=DIR gives the same tensors again, to the bit. An earlier import at out= is replaced.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from toto_train import hub
from toto_train.arguments import fail_on, parse
from toto_train.checkpoint_saver import save_import


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(__doc__, argv, required={"path": str, "out": str}, optional={})
    if not Path(args["path"]).is_dir():
        raise ValueError(f"path={args['path']} is no folder; `hf download ORG/NAME --local-dir DIR` fetches a model")
    model = hub.load_pretrained(args["path"])
    hub.refuse_non_finite(model, args["path"])
    out = save_import(Path(args["out"]), model, hub.origin(args["path"]))
    size = model.config.name
    print(f"imported {args['path']} ({size}, {sum(p.numel() for p in model.parameters()):,} parameters) -> {out}")
    print(f"train from it: python train.py model={size} init_from={out} ...")
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="import_hf"):
        sys.exit(main(sys.argv[1:]))
