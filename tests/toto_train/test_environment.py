"""What a rank finds wrong with its place before it talks to another, and how ranks that differ are told apart."""

import logging
from dataclasses import replace

import pytest

from toto_train.config import Config, ParallelConfig
from toto_train.environment import LaunchError, check_environment, facts
from toto_train.rendezvous import differences

CONFIG = Config(parallel=ParallelConfig(mode="ddp", devices=4, nodes=2))
PLACE = {
    "RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}  # fmt: skip


def problems(monkeypatch, **changes: str | None) -> list[str]:
    for name, value in {**PLACE, **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    try:
        check_environment(CONFIG, "cpu")
    except LaunchError as error:
        return error.problems
    return []


def test_a_place_that_fits(monkeypatch):
    assert problems(monkeypatch) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"RANK": None, "MASTER_ADDR": None}, ["RANK, MASTER_ADDR not set; start ranks by"]),
        ({"RANK": "x", "MASTER_PORT": ""}, ["MASTER_PORT not set", "RANK='x' is not a number"]),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            [
                "WORLD_SIZE=4, but parallel.devices=4 x parallel.nodes=2 asks for 8 ranks; start 4 ranks on each of 2",
                "LOCAL_WORLD_SIZE=2, but parallel.devices=4 x parallel.nodes=2 asks for 4 ranks on a node",
                "RANK=6 must be below WORLD_SIZE=4",
                "LOCAL_RANK=2 must be below LOCAL_WORLD_SIZE=2",
            ],
        ),
        ({"LOCAL_RANK": "1"}, ["RANK=6 and LOCAL_RANK=1 do not fit LOCAL_WORLD_SIZE=4"]),
        ({"MASTER_PORT": "65536"}, ["MASTER_PORT=65536 must be a port"]),
    ],
)
def test_everything_that_is_wrong_with_a_place_is_said_at_once(monkeypatch, changes, expected):
    found = problems(monkeypatch, **changes)
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


def came(*changed: dict[str, str]) -> list[dict]:
    """Facts of ranks on two hosts, each with its changes."""
    common = {"torch": "2.13.0", "code": "abc", "config.seed": "0", "GPU": "H100"}
    return [
        {**common, "GPU id": f"gpu{rank}", "host": f"node{rank // 2}", "process": "1", "rank": rank, **change}
        for rank, change in enumerate(changed)
    ]


def test_ranks_that_differ_are_named_with_what_they_have():
    assert differences(came({}, {}, {}, {})) == []
    assert differences(came({}, {}, {"torch": "2.12.0"}, {"torch": "2.12.0", "config.seed": "1"})) == [
        "torch differs: 2.13.0 on ranks 0-1 (node0), 2.12.0 on ranks 2-3 (node1); install the same on every node",
        "seed differs: 0 on ranks 0-2 (node0, node1), 1 on rank 3 (node1); give every node the same launch.yaml",
    ]
    assert differences(came({}, {"code": "def"}))[0].startswith(
        "the code differs: abc on rank 0 (node0), def on rank 1"
    )
    assert differences(came({}, {"NCCL": "2.28"})) == [
        "NCCL differs: none on rank 0 (node0), 2.28 on rank 1 (node0); install the same on every node"
    ]


def test_other_settings_everywhere_do_not_drown_the_rest():
    found = differences(came({}, {f"config.{key}": "1" for key in "abcdefghijkl"} | {"torch": "2.12.0"}))
    assert len(found) == 10
    assert found[0].startswith("torch differs")
    assert found[-1] == "and 4 more settings differ"


def test_two_ranks_on_one_gpu_are_an_error_and_another_model_of_gpu_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        found = differences(came({}, {"GPU id": "gpu0"}, {"GPU": "A100"}))
    assert found == ["ranks 0-1 (node0) have the same GPU, gpu0; each needs its own: is LOCAL_RANK right?"]
    assert "H100 on ranks 0-1 (node0), A100 on rank 2 (node1)" in caplog.text


def test_facts_tell_settings_apart_and_nothing_else():
    one, two = facts(CONFIG, "cpu"), facts(replace(CONFIG, seed=1), "cpu")
    assert {key for key in one if one[key] != two[key]} == {"config.seed"}
    assert {"python", "torch", "lightning", "numpy", "toto-train", "code", "CUDA"} <= set(one)
