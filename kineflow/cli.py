"""The command line: `kineflow VERB ...`. Exit codes: 0 ok, 1 the check failed, 2 bad usage or bad input.

Each verb is one function below; folders are imported inside the verbs, so that `kineflow --help` needs no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kineflow
from kineflow import cli_collect, cli_data, cli_deploy, cli_export, cli_flow, cli_live, cli_scene, cli_table
from kineflow.cli_verb import add_verb as _verb, positive as _positive, show as _show
from kineflow.contracts import KineflowError
from kineflow.extras import EXTRA_OF


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors made by input are one message on stderr, never a bare stack trace."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_overrides:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    words = list(sys.argv[1:] if argv is None else argv)
    if rest and len(words) > 1 and words[1] == rest[0]:
        parser.error(f"name what to {words[0]} first, then the overrides: kineflow {words[0]} NAME {rest[0]} ...")
    args.overrides = rest
    try:
        return int(args.verb(args))
    except KineflowError as error:
        print(f"kineflow: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f"kineflow: this command needs the package '{error.name}': pip install 'kineflow[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "kineflow: stopped; checkpoints and episodes already written stay, `kineflow train --resume RUN` goes on from them",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kineflow", description=kineflow.__doc__)
    parser.add_argument("--version", action="version", version=f"kineflow {kineflow.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    learning, driving = (_add_training, cli_scene.add, cli_flow.add), (_add_evaluation, cli_table.add)
    robots = (cli_export.add, cli_deploy.add, cli_live.add_doctor)
    for add in (_add_demo_and_data, cli_collect.add, *learning, *driving, _add_compose, *robots, _add_bench):
        add(verbs)
    return parser


def _add_demo_and_data(verbs: Any) -> None:
    demo = _verb(verbs, "demo", _demo, "import the shipped demonstrations, train, evaluate, write the report")
    demo.add_argument("--minutes", type=_positive, default=6.0, help="training budget, minutes (default 6)")
    demo.add_argument("--episodes", type=int, default=50, help="evaluation episodes (default 50)")
    demo.add_argument("--run", type=Path, default=Path("runs/demo"))
    cli_data.add(verbs)


def _add_training(verbs: Any) -> None:
    train = _verb(verbs, "train", _train, "train a policy; any field of the config can follow as --field value", overrides=True)
    train.add_argument("config", nargs="?", help="YAML file, or the name of a shipped one such as train/pusht_flow")
    train.add_argument("--run", type=Path, help="run folder to make")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue this run where its last checkpoint is")
    train.add_argument("--minutes", type=_positive, help="choose `steps` so that training takes about this long here")

    distill = _verb(
        verbs,
        "distill",
        _distill,
        "train a few-call student of a trained run; config fields can follow",
        overrides=True,
    )
    distill.add_argument("teacher", type=Path, metavar="RUN", help="run folder of the teacher")
    distill.add_argument(
        "--method", default="psd", help="psd, lsd, meanflow, imf, reflow, slimflow, onestep, arcflow or bifm (default psd)"
    )
    distill.add_argument("--student", help='its head: a kind, YAML such as "{kind: MLP, width: 64}", or a file (default: same)')
    distill.add_argument("--steps", type=int, default=1, help="network calls for a chunk (default 1)")
    distill.add_argument("--minutes", type=_positive, help="choose the training steps so that training takes about this long")
    distill.add_argument("--training-steps", type=int, help="optimiser steps (default: those of the teacher)")
    distill.add_argument("--run", type=Path, metavar="OUT", help="run folder to make (default RUN_METHOD)")


def _add_evaluation(verbs: Any) -> None:
    evaluate = _verb(
        verbs, "eval", _eval, "evaluate a policy closed loop; any field of the evaluation config can follow", overrides=True
    )
    evaluate.add_argument("policy", help="run folder, checkpoint folder, shipped kineflow://NAME or hub name")
    evaluate.add_argument("--config", default="eval/pusht", help="evaluation config (default eval/pusht)")
    evaluate.add_argument("--out", type=Path, help="folder for the results (default RUN/eval/NAME)")

    compare = _verb(verbs, "compare", _compare, "train (configs) and evaluate (configs, runs) on the same starts; one table")
    compare.add_argument(
        "policies", nargs="+", help="shipped configs, YAML files, run folders or kineflow://NAME; the first is the reference"
    )
    compare.add_argument("--minutes", type=_positive, default=6.0, help="training budget of each config, minutes (default 6)")
    compare.add_argument("--episodes", type=int, default=200)
    compare.add_argument("--out", type=Path, default=Path("runs/compare"))


def _add_compose(verbs: Any) -> None:
    compose = _verb(
        verbs,
        "compose",
        _compose,
        "make one policy of several trained ones; with --search, fields of the search config can follow",
        overrides=True,
    )
    compose.add_argument(
        "policies", nargs="+", help="run folders, checkpoint folders or hub names; or one YAML file that has them"
    )
    compose.add_argument("--run", type=Path, required=True, metavar="OUT", help="folder to make; loads like any policy")
    compose.add_argument("--weights", help="one for each policy, in sum 1: 0.3,0.7")
    compose.add_argument(
        "--schedule", help="weights by noise level instead, T:W,W;... with T from 0 (noise) to 1: 0:1,0;1:0.3,0.7"
    )
    compose.add_argument("--search", action="store_true", help="look for weights on search seeds, report on other seeds")
    compose.add_argument("--config", default="compose/pusht", help="search config (default compose/pusht)")
    compose.add_argument("--operator", choices=["convex", "and", "or"])
    compose.add_argument("--solver", help="ddim, heun, dpmpp2m, ddpm, sde, ... (default: the policies' own, or ddim)")
    compose.add_argument("--steps", type=int, help="default: the most that one of the policies takes")
    compose.add_argument("--grid", help="noise levels, known to all policies: uniform (default), shifted:3, edm:7, lambda")
    compose.add_argument(
        "--diffusion", type=float, metavar="K", help="of solver sde; a growing K goes to the product of densities"
    )
    compose.add_argument("--execution", type=int, help="executed steps of each chunk (default: the shortest of the policies)")
    compose.add_argument("--approximate", action="store_true", help="accept action scales that differ by a factor per dimension")
    compose.add_argument("--link", action="store_true", help="name the policies by relative path instead of copying them in")


def _add_bench(verbs: Any) -> None:
    bench = _verb(verbs, "bench", _bench, "measure ours beside a reference in one run")
    learning = ["head", "compose", "sampler", "train", "crash", "data", "env", "flow", "policy"]
    bench.add_argument("name", choices=[*learning, "rtc", "export", "node", "serve", "all"])
    bench.add_argument("--quick", action="store_true", help="a stated subset in about a minute")
    bench.add_argument("--kills", type=int, help="of bench crash: kills of each writer (default 1000, quick 20)")


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.policies.demo import run_demo
    from kineflow.policies.evaluation import render_result

    result = run_demo(args.run, minutes=args.minutes, episodes=args.episodes)
    _show(args, result.to_json(), lambda: render_result(result, Console()))
    return 0


def _train(args: argparse.Namespace) -> int:
    from kineflow.config import ConfigError, load_config
    from kineflow.policies.budget import choose_threads, fit_to_minutes
    from kineflow.policies.train import TrainConfig, resume_run, train

    if args.resume:
        if args.config or args.overrides or args.minutes:
            raise ConfigError("--resume takes the run folder and nothing else: the run knows its configuration")
        resume_run(args.resume)
        run = args.resume
    else:
        if not args.config:
            raise ConfigError("name a configuration, e.g. `kineflow train train/pusht_flow --run runs/mine`, or use --resume RUN")
        config = load_config(TrainConfig, args.config, args.overrides)
        run = args.run or Path("runs") / Path(args.config).stem
        config = choose_threads(config)
        train(fit_to_minutes(config, args.minutes) if args.minutes else config, run)
    _show(args, {"run": str(run)}, lambda: print(f"trained: {run}   next: kineflow eval {run}"))
    return 0


def _distill(args: argparse.Namespace) -> int:
    from kineflow.policies.distillation.distill import distill

    run = distill(
        args.teacher,
        args.method,
        student=args.student,
        steps=args.steps,
        run=args.run,
        minutes=args.minutes,
        training_steps=args.training_steps,
        overrides=args.overrides,
    )
    _show(args, {"run": str(run)}, lambda: print(f"distilled: {run}   next: kineflow compare {args.teacher} {run}"))
    return 0


def _eval(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.config import load_config
    from kineflow.deploy.loading import load_policy
    from kineflow.policies.eval_result import EvalConfig
    from kineflow.policies.evaluation import evaluate, render_result

    config = load_config(EvalConfig, args.config, args.overrides)
    policy = load_policy(args.policy)
    if config.sampling:
        policy = policy.resampled(**config.sampling)
    run = Path(args.policy) if (Path(args.policy) / "checkpoints").is_dir() else None
    name = args.policy.removeprefix("kineflow://").replace("/", "--")
    local = Path(args.policy) if Path(args.policy).is_dir() else Path("runs") / name
    out = args.out or local / "eval" / config.name
    result = evaluate(policy, config, out, run)
    _show(args, result.to_json(), lambda: render_result(result, Console()))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from kineflow.deploy.loading import load_policy
    from kineflow.policies.compare import compare

    table = compare(args.policies, minutes=args.minutes, episodes=args.episodes, out=args.out, load=load_policy)
    _show(args, table.to_json(), table.print)
    return 0


def _compose(args: argparse.Namespace) -> int:
    from kineflow.config import ConfigError, load_config
    from kineflow.policies.compose.build import build, composition_options
    from kineflow.policies.compose.search import SearchConfig

    if args.search and (args.weights or args.schedule):
        raise ConfigError("--search looks for the weights itself; leave --weights and --schedule out, or leave --search out")
    if args.overrides and not args.search:
        raise ConfigError(f"{' '.join(args.overrides)}: only --search has a configuration to change; see kineflow compose --help")
    searched = load_config(SearchConfig, args.config, args.overrides) if args.search else None
    built = build(args.policies, args.run, composition_options(vars(args)), link=args.link, searched=searched)
    _show(args, built.to_json(), built.print)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from kineflow.deploy.bench.run import BENCHES
    from kineflow.policies.bench.run import run_bench

    report = run_bench(args.name, quick=args.quick, kills=args.kills, more=BENCHES)
    _show(args, report.to_json(), report.print)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
