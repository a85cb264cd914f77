"""From the command line to a checked Config: Hydra composes, this module says everything that is wrong at once."""

from __future__ import annotations

import dataclasses
import logging
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from toto_train.config import Config, ConfigError, RunStopped
from toto_train.config_check import from_tree, nearest
from toto_train.processes import end_as_init

STOPPED = (130, 143)
"""Exit statuses of a run that a signal ended: whoever sent it does not want the next one of a multirun either."""

# A group's entry "model: nano" must not be rejected for the fields that only the dataclass names, so every default is
# in the tree Hydra composes; plain values, because types are checked afterwards, all at once.
ConfigStore.instance().store("defaults", OmegaConf.create(dataclasses.asdict(Config())))


def main(argv: list[str], configs: Path) -> int:
    """Run train.py's command line; returns the exit status. Hydra's own flags (--cfg, --help) go to Hydra."""
    end_as_init()
    log_to_stderr(logging.INFO)
    if any(a.startswith("-") for a in argv):
        return guarded(lambda: by_hydra(argv, configs))
    return guarded(lambda: _run(config_from_overrides(argv, configs)))


def log_to_stderr(level: int, prefix: str = "") -> None:
    """Log lines on stderr, above any progress bar."""
    logging.basicConfig(level=level, format=f"{prefix}%(message)s", handlers=[_AboveTheBar()])


def guarded(job: Callable[[], None], rank: int = 0, local_rank: int = 0) -> int:
    """Exit status of a job; what a user can cause is one message, by one rank of a node, anything else a traceback."""
    name = f"train.py, rank {rank}" if rank else "train.py"
    try:
        job()
    except (ConfigError, RunStopped) as error:  # the same on all ranks of a node
        if not local_rank:
            print(error if isinstance(error, ConfigError) else f"{name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else error.status
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, HydraException) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


class _AboveTheBar(logging.Handler):
    """Log lines on stderr that leave a progress bar whole."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _run(config: Config) -> None:
    from toto_train.launch import launch  # torch and Lightning load only once the config is known to be good

    launch(config)


def by_hydra(argv: list[str], configs: Path) -> None:
    """Have Hydra show, or run by one of its launchers; ends with SystemExit where that fails."""
    flags = [a for a in argv if "=" not in a or a.startswith("-")]  # and their values: --cfg job
    problems, good = _split_overrides([a for a in argv if a not in flags], configs)
    if problems:
        raise ConfigError(problems)
    # what all jobs of a multirun have in common does not tell them apart, and would make names of folders too long
    parsed = OverridesParser.create().parse_overrides(good)
    common = {o.key_or_group for o in parsed} - {o.key_or_group for o in parsed if o.is_sweep_override()}
    name = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(common))}]"
    sys.argv = ["train.py", *flags, *good, name]
    hydra.main(version_base="1.3", config_path=str(configs), config_name="train")(_job)()


class TrialFailed(CompactHydraException):
    """One job of a multirun failed, and has said why; the others go on, and Hydra ends with status 1."""


def _job(tree: DictConfig) -> None:
    """What Hydra runs: one job, whose folder, in a multirun, carries what distinguishes it."""
    facts = HydraConfig.get()
    what = facts.job.override_dirname if facts.mode == RunMode.MULTIRUN else ""
    name = f"{tree.name or tree.model.name}-{what.replace('/', '.')}"
    said: list[str] = []

    def job() -> None:
        try:
            config = from_tree(OmegaConf.to_container(tree, resolve=True))  # type: ignore[arg-type]
            if what:
                config.name = name
            _run(config)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
            raise

    status = guarded(job)
    if status and (not what or status in STOPPED):
        raise SystemExit(status)
    if status:
        from toto_train.launch import note_failure

        note_failure(Path(tree.out) / name, said[-1])
    if status:
        raise TrialFailed(f"{what} ended with status {status}; its own message says why")


def config_from_overrides(overrides: list[str], configs: Path) -> Config:
    """Compose configs/train.yaml with overrides. Raises ConfigError with every problem of names, types and values."""
    problems, good = _split_overrides(overrides, configs)
    try:
        with initialize_config_dir(config_dir=str(configs), version_base="1.3"):
            tree = compose("train", overrides=good)
        config = from_tree(OmegaConf.to_container(tree, resolve=True))  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    except HydraException as error:
        raise ConfigError([*problems, str(error)]) from None
    if problems:
        raise ConfigError(problems)
    return config


def _split_overrides(overrides: list[str], configs: Path) -> tuple[list[str], list[str]]:
    """(problems, overrides that Hydra can compose): every key must be a group, a setting, or Hydra's own."""
    problems: list[str] = []
    good: list[str] = []
    folders = [p for p in configs.iterdir() if p.is_dir() and p.name != "search"]  # rounds are for scripts/search.py
    groups = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in folders}
    for text, override in parse_overrides(overrides, problems):
        key = override.key_or_group.split("@")[0]
        if key in groups:
            problem = _group_problem(override, key, groups[key])
        else:
            problem = None if key.startswith("hydra") else _key_problem(key, groups)
        if problem:
            problems.append(problem)
        else:
            # Hydra wants plus signs for new entries of the mixture and new stages, and none for what is there
            new = f"{key}.".startswith(("data.mixture.", "data.stages.")) and not text.startswith("~")
            good.append("++" + text.lstrip("+") if new else text.lstrip("+"))
    return problems, good


def parse_overrides(overrides: Iterable[str], problems: list[str]) -> Iterator[tuple[str, Override]]:
    """(text, what Hydra makes of it); texts that are no overrides go to `problems` instead."""
    parser = OverridesParser.create()
    for text in overrides:
        try:
            yield text, parser.parse_override(text)
        except HydraException:
            problems.append(f"{text!r} is not key=value")


def _group_problem(override: Override, group: str, choices: list[str]) -> str | None:
    value = override.value()
    chosen = value.list if override.is_choice_sweep() else [value]  # type: ignore[union-attr]
    for choice in chosen:
        if choice is not None and str(choice) not in choices:
            return f"unknown {group}={choice}; {nearest(str(choice), choices)}"
    return None


def _key_problem(key: str, groups: dict[str, Any]) -> str | None:
    """Walk the dataclasses along a dotted key."""
    kind: Any = Config
    parts = key.split(".")
    for i, part in enumerate(parts):
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            if part not in hints:
                valid = set(hints) | (set(groups) if i == 0 else set())
                return f"unknown key '{key}'; at '{part}' {nearest(part, valid)}"
            kind = hints[part]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return f"unknown key '{key}'; '{'.'.join(parts[:i])}' has no settings below it"
    return None
