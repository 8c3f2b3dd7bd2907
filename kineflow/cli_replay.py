"""`kineflow deploy replay BAG RUN`: what the node would have commanded, from a recorded bag."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from kineflow import cli_live
from kineflow.cli_verb import add_verb, not_negative, show
from kineflow.interface import KineflowError


def add(whats: Any) -> None:
    text = "drive a recorded bag through the node's path in virtual time; fields of the node's configuration can follow"
    replay = add_verb(whats, "replay", _replay, text, overrides=True)
    replay.add_argument("bag", type=Path, help="an .mcap or .db3 file, or the folder of a rosbag2")
    replay.add_argument(
        "policy", help="run, checkpoint, exported folder, kineflow://NAME, ws://HOST:PORT, or module:function that makes one"
    )
    replay.add_argument("--node", default="nodes/wheeled", help="the node's configuration (default nodes/wheeled)")
    replay.add_argument("--latency-ms", type=not_negative, help="of every answer (default: the time that it takes here)")
    replay.add_argument("--remap", action="append", default=[], metavar="OURS:=BAGS", help="a topic of another name; repeatable")
    replay.add_argument("--partial", action="store_true", help="also a bag that is not whole: what there is")
    cli_live.add_view(replay)
    replay.add_argument("--page", type=Path, help="write an HTML page with the commands over time")


def _replay(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from kineflow.config import load_config
    from kineflow.datasets.importers.rosbag2 import open_log
    from kineflow.deploy.replay import replay
    from kineflow.deploy.replay_report import lines_of, table_of, write_page
    from kineflow.deploy.robot_profile import RobotProfile
    from kineflow.deploy.ros2.node_config import NodeConfig
    from kineflow.deploy.ros2.policy_source import load

    open_log(args.bag)  # before the policy, which may take a while
    if args.page:
        _make_room(args.page)
    remap = dict(_pair(text) for text in args.remap)
    config = replace(load_config(NodeConfig, args.node, args.overrides), policy=args.policy)
    robot = load_config(RobotProfile, config.robot)
    seconds = None if args.latency_ms is None else args.latency_ms / 1e3
    policy = load(args.policy)
    with cli_live.shown(args, "replayed", policy.contract.interface) as watched:
        replayed = replay(args.bag, policy, config, robot, latency_s=seconds, partial=args.partial, remap=remap, show=watched)
    table = table_of(replayed, robot.command.names, robot.rate_hz, seconds is None)
    if args.page:
        write_page(table, replayed.recorded, f"{args.bag.name} replayed with {args.policy}", args.page)

    def human() -> None:
        print("\n".join(lines_of(table)))
        if args.page:
            print(f"page: {args.page}")

    show(args, table, human)
    return 0


def _make_room(page: Path) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KineflowError(f"--page {page}: {error.strerror}; name a file where you may write") from error
    if page.is_dir() or not os.access(page.parent, os.W_OK):
        raise KineflowError(f"--page {page} is a folder or in one that is not yours; name a file where you may write")


def _pair(text: str) -> tuple[str, str]:
    ours, sign, theirs = text.partition(":=")
    if not (ours and sign and theirs):
        raise KineflowError(f"--remap {text}: write OURS:=BAGS, such as front:=/camera/color/image_raw")
    return ours, theirs
