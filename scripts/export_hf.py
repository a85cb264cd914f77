"""Export a run as a Hugging Face folder: python scripts/export_hf.py run=runs/quickstart out=DIR [push_to=ORG/NAME]

Takes the checkpoint that validation chooses (checkpoint=best, the default; the last where none was validated), or the
run's last (checkpoint=last), and writes config.json, model.safetensors and README.md, which the official toto-2
package loads unchanged: Toto2Model.from_pretrained(DIR). Weights beyond max_shard=5GB are split, with an index.
push_to=ORG/NAME  then uploads the folder to the Hugging Face Hub; the token is HF_TOKEN's or that of `hf auth login`
                  private=true (a repository that is made is private)  revision= (a branch)  dry_run=true (only shows)
"""

from __future__ import annotations

import re
import sys

from toto_train import checkpoint, checkpoint_files, hub
from toto_train.arguments import fail_on, parse
from toto_train.push import check_repo_id, check_token, push_to_hub

DEFAULTS = {
    "checkpoint": "best", "max_shard": "5GB", "push_to": "", "private": False, "revision": "", "dry_run": False,
}  # fmt: skip


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"run": str, "out": str}, optional=DEFAULTS)
    limit = parse_size(args["max_shard"])
    check_push(args)
    model, meta = checkpoint.load_model(args["run"], args["checkpoint"])
    if imported := meta.get("imported"):  # nothing was trained: the card and the facts stay those of the origin
        card, training = imported["card"], imported["training"]
    else:
        title = f"{meta['config']['name']}: a {model.config.name} Toto 2.0-class forecaster"
        place = load_from(args["push_to"], in_shards=4 * sum(p.numel() for p in model.parameters()) > limit)
        card = hub.model_card(title, checkpoint_files.facts(args["run"], model, meta), place)
        training = {"context_length": meta["config"]["data"]["length"], "steps": meta["step"], "points": meta["points"]}
    out = hub.save_pretrained(model, args["out"], card, training, limit)
    print(f"exported step {meta['step']} of {args['run']} -> {out}")
    if args["push_to"]:
        print(push_to_hub(out, args["push_to"], args["private"], args["dry_run"], args["revision"] or None))
    return 0


def load_from(repo_id: str, in_shards: bool) -> str:
    """What the card gives the official loader, which takes shards from a folder, but not from the Hub by name."""
    if not repo_id:
        return '"path/to/this/folder"'
    return f'snapshot_download("{repo_id}")' if in_shards else f'"{repo_id}"'


def check_push(args: dict) -> None:
    """Find what the push would fail on before the export is made."""
    if args["push_to"]:
        check_repo_id(args["push_to"])
        if not args["dry_run"]:
            check_token()
    elif given := [key for key in ("private", "revision", "dry_run") if args[key]]:
        raise ValueError(f"{given[0]}={args[given[0]]} needs push_to=ORG/NAME")


def parse_size(text: str) -> int:
    """'500MB' -> 500_000_000 (bytes; units of 1000, as the Hub counts)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])B", text.upper())
    size = int(float(found[1]) * 1000 ** (1 + "KMGT".index(found[2]))) if found else 0
    if size < 1:
        raise ValueError(f"max_shard={text!r} must be a size such as 5GB or 500MB")
    return size


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="export_hf"):
        sys.exit(main(sys.argv[1:]))
