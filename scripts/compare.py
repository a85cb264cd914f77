"""Put runs side by side: python scripts/compare.py RUN RUN ... [out=compare.html] [draws=1000] [seed=0]

A RUN is a run folder (runs/<name>, finished or still training) or a folder that scripts/evaluate.py wrote. The page
shows learning curves, scores with a paired bootstrap against the first RUN, every task, and the settings that differ.
draws: bootstrap samples, seed: theirs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from toto_train.arguments import fail_on, parse
from toto_train.evaluation.compare import read_runs, standings, text
from toto_train.evaluation.compare_page import write_comparison

OPTIONS = {"out": "compare.html", "draws": 1000, "seed": 0}


def main(argv: list[str]) -> int:
    # the folder of a multirun job has equal signs in its name
    paths = [arg for arg in argv if Path(arg).is_dir() or not (arg.startswith("-") or "=" in arg)]
    args = parse(__doc__, [arg for arg in argv if arg not in paths], required={}, optional=OPTIONS)
    problems = [] if len(paths) > 1 else ["give at least two run folders"]
    problems += [f"{key}={args[key]} must not be negative" for key in ("draws", "seed") if args[key] < 0]
    if problems:
        print("\n".join(problems) + f"\nusage: {(__doc__ or '').strip()}", file=sys.stderr)
        return 2
    found = standings(read_runs(paths), args["draws"], args["seed"])
    page = write_comparison(Path(args["out"]), found)
    print(text(found))
    print(page)
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="compare"):
        sys.exit(main(sys.argv[1:]))
