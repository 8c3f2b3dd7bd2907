"""`kineflow deploy serve POLICY`: a policy for robots elsewhere on the network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb


def add(whats: Any) -> None:
    serve = add_verb(
        whats,
        "serve",
        _serve,
        "answer robots' questions over websockets, several in one call; fields of the server's configuration can follow",
        overrides=True,
    )
    serve.add_argument("policy", help="run, checkpoint, composed or exported folder, kineflow://NAME or hub name")
    serve.add_argument("--token-file", type=Path, required=True, help="what clients must show; not readable by others")
    serve.add_argument("--config", default="deploy/server", help="server configuration (default deploy/server)")
    serve.add_argument("--device", default="cpu", help="where the policy computes, such as cuda (default cpu)")
    serve.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU (default 1)")


def _serve(args: argparse.Namespace) -> int:
    from kineflow.config import load_config
    from kineflow.deploy.server.config import ServerConfig
    from kineflow.deploy.server.process import load_served, serve, token_from

    config, token = load_config(ServerConfig, args.config, args.overrides), token_from(args.token_file)
    return serve(lambda: load_served(args.policy, args.device, args.threads), config, token, args.policy)
