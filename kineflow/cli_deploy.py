"""`kineflow deploy WHAT ...`: policies on robots, and what comes before them."""

from __future__ import annotations

import argparse
from typing import Any

from kineflow import cli_live, cli_replay, cli_robot, cli_serve
from kineflow.cli_verb import add_verb, at_least_one, not_negative, show


def add(verbs: Any) -> None:
    text = "policies on robots, and what comes before them"
    whats = verbs.add_parser("deploy", help=text, description=text, allow_abbrev=False).add_subparsers(
        required=True, metavar="WHAT"
    )
    _add_simulate(whats)
    cli_replay.add(whats)
    cli_serve.add(whats)
    cli_live.add(whats)
    cli_robot.add(whats)


def _add_simulate(whats: Any) -> None:
    simulate = add_verb(
        whats,
        "simulate",
        _simulate,
        "drive an environment through the robot's executor, in virtual time with latencies; executor fields can follow",
        overrides=True,
    )
    simulate.add_argument(
        "policy", help="run, checkpoint, composed or exported folder, kineflow://NAME, hub name or ws://HOST:PORT"
    )
    simulate.add_argument("--config", default="eval/pusht", help="evaluation config: which environment (default eval/pusht)")
    simulate.add_argument("--executor", default="deploy/rtc", help="how chunks are executed (default deploy/rtc)")
    simulate.add_argument("--profile", help="robot whose governor has the last word, such as robots/wheeled (default none)")
    simulate.add_argument("--episodes", type=at_least_one, default=5)
    simulate.add_argument("--latency-ms", type=not_negative, help="of every answer (default: the time that it takes here)")
    cli_live.add_view(simulate)


def _simulate(args: argparse.Namespace) -> int:
    from kineflow.config import load_config
    from kineflow.deploy.executor_config import ExecutorConfig
    from kineflow.deploy.loading import load_policy
    from kineflow.deploy.robot_profile import RobotProfile
    from kineflow.deploy.simulation import Simulation, table_of
    from kineflow.policies.eval_result import EvalConfig

    config = load_config(EvalConfig, args.config)
    executor = load_config(ExecutorConfig, args.executor, args.overrides)
    profile = load_config(RobotProfile, args.profile) if args.profile else None
    simulation = Simulation(load_policy(args.policy), config, executor, profile)
    seeds = range(config.seed_start, config.seed_start + args.episodes)
    with cli_live.shown(args, "simulated", simulation.policy.contract.interface) as watched:
        table = table_of(simulation.run(seeds, None if args.latency_ms is None else args.latency_ms / 1e3, watched))

    def human() -> None:
        for name, value in table.items():
            if name != "results":
                print(f"{name:18} {value:.4g}")

    show(args, table, human)
    return 0
