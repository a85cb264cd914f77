"""Check every byte of a dataset against its manifest: python scripts/verify_shards.py DIR (a folder or a URL)

Prints each problem (exit 1) or what the dataset holds (exit 0); series without variation are named as warnings.
"""

from __future__ import annotations

import logging
import sys

from data_pipelines.shards import read_manifest
from data_pipelines.verify import verify
from toto_train.arguments import fail_on


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip())
        return 0
    if len(argv) != 1:
        raise SystemExit((__doc__ or "").strip())
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    if problems := verify(argv[0]):
        print("\n".join(problems))
        print(f"{argv[0]}: {len(problems)} problem(s)")
        return 1
    m = read_manifest(argv[0])
    missing = 100 * m["missing"] / max(m["points"] + m["missing"], 1)
    print(
        f"{argv[0]}: whole. {m['series']} series, {m['variates']} variates, {m['points']} points "
        f"({missing:.1f} % missing), {len(m['sources'])} sources, {len(m['shards'])} shards"
    )
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="verify_shards"):
        sys.exit(main(sys.argv[1:]))
