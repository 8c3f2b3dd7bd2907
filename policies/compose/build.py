"""`kineflow compose A B --weights 0.3,0.7 --run OUT` and `--search`: from what was typed to a folder that holds a policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.folder import load_parents, refuse_used, save_composed
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.compose.report import build_search_report
from kineflow.policies.compose.search import MakeEnvironment, SearchConfig, SearchResult, search
from kineflow.policies.compose.weights import WeightKnot
from kineflow.policies.samplers import SolverName
from kineflow.policies.time_grids import TimeGrid

YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Built:
    """A composed policy in its folder, with the search that chose its weights, if there was one."""

    policy: ComposedPolicy
    folder: Path
    result: SearchResult | None

    def print(self) -> None:
        """For a person."""
        console, weights = Console(), ", ".join(f"{w:g}" for w in self.policy.composition.weights)
        console.print(f"composed: {' + '.join(self.policy.names)}  {f'weights {weights}' if weights else ''}", highlight=False)
        if self.result:
            gain, best = self.result.gain, self.policy.names[self.result.best_parent]
            console.print(
                f"minus the better parent ({best}): {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]", highlight=False
            )
            for one in self.result.gpc:
                console.print(f"{one.claim}: {one.verdict} ({one.seen})", highlight=False, markup=False)
            console.print(f"report: {self.folder / 'search' / 'report.html'}", soft_wrap=True, highlight=False)
        console.print(f"next: kineflow eval {self.folder}", soft_wrap=True, highlight=False)

    def to_json(self) -> dict[str, Any]:
        composition = self.policy.composition
        found = (
            {} if self.result is None else {"search": self.result.to_json(), "report": str(self.folder / "search/report.html")}
        )
        return {
            "run": str(self.folder),
            "weights": list(composition.weights),
            "operator": composition.operator,
            "solver": composition.solver,
            "steps": composition.steps,
            "observes": [*self.policy.contract.interface.features, *self.policy.contract.interface.cameras],
            **found,
        }


def build(
    sources: Sequence[str],
    out: Path,
    options: dict[str, Any],
    *,
    link: bool = False,
    searched: SearchConfig | None = None,
    make_env: MakeEnvironment | None = None,
    console: Console | None = None,
) -> Built:
    """Compose `sources` (policies, or one YAML file of a Composition) into the folder `out`.

    `options` are fields of Composition; what is missing is taken from the parents. With `searched` the weights are looked for;
    a search that was stopped goes on from what it has played.

    Raises:
        KineflowError: `out` is in use, or the parents cannot be composed so; nothing is written then.
    """
    console = console or Console(stderr=True)
    refuse_used(out)
    sources, fixed = _read(sources, options)
    parents, names = load_parents(sources)
    weights = {} if not searched or "schedule" in fixed else {"weights": (1 / len(parents),) * len(parents)}
    policy = compose(parents, names, _composition(parents, names, fixed | weights))
    result = None
    if searched:
        policy, result = search(policy, searched, console, make_env, out / "search" / "arms")
    policy = save_composed(policy, out, sources if link else ())
    if result:
        _write(result, policy.composition, out / "search")
    return Built(policy, out, result)


def composition_options(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Composition from the command line; what was not typed is left out."""
    if typed.get("solver") not in (None, *get_args(SolverName)):
        raise KineflowError(f"--solver {typed['solver']}: one of {', '.join(get_args(SolverName))}")
    plain = ("operator", "solver", "steps", "diffusion", "execution")
    options: dict[str, Any] = {name: typed[name] for name in plain if typed.get(name) is not None}
    if typed.get("grid"):
        options["grid"] = TimeGrid.parse(typed["grid"])
    if typed.get("approximate"):
        options["approximate"] = True
    if typed.get("weights"):
        options["weights"] = parse_weights(typed["weights"])
    if typed.get("schedule"):
        options["schedule"] = parse_schedule(typed["schedule"])
    return options


def parse_schedule(text: str) -> tuple[WeightKnot, ...]:
    """`0:1,0;1:0.3,0.7` is all weight on the first policy at t = 0 (noise), 0.3 and 0.7 at t = 1 (data), linear between."""
    try:
        pairs = [knot.split(":") for knot in text.split(";")]
        return tuple(WeightKnot(float(t), tuple(float(w) for w in weights.split(","))) for t, weights in pairs)
    except ValueError as error:
        raise KineflowError(f"schedule '{text}': write T:W,W,...;T:W,W,... for example 0:1,0;1:0.3,0.7") from error


def parse_weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(w) for w in text.split(","))
    except ValueError as error:
        raise KineflowError(f"weights '{text}': write numbers with commas, for example 0.3,0.7") from error


def _read(sources: Sequence[str], options: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """A YAML file names the parents, relative to itself, and any other field; options on the command line win."""
    if len(sources) != 1 or not sources[0].endswith(YAML):
        return list(sources), options
    file = Path(sources[0])
    config = load_config(Composition, file)
    written = {name: getattr(config, name) for name in Composition.__dataclass_fields__ if name != "parents"}
    local = [str(file.parent / p) if (file.parent / p).exists() else p for p in config.parents]
    if options.keys() & {"weights", "schedule"}:  # what is typed replaces both
        written |= {"weights": (), "schedule": ()}
    return local, written | options


def _composition(parents: Sequence[ChunkPolicy], names: Sequence[str], options: dict[str, Any]) -> Composition:
    """Defaults from the parents: their solver where they agree, else DDIM (which Euler on a flow is too); most steps of any."""
    if options.get("operator") != "and" and not options.get("weights") and not options.get("schedule"):
        raise KineflowError("name the weights: --weights 0.5,0.5 (one for each policy), --schedule, or --search to look for them")
    samplers = [parent.contract.sampler for parent in parents]
    solvers = {sampler.solver for sampler in samplers}
    solver = "ddpm" if options.get("operator") == "and" else solvers.pop() if len(solvers) == 1 else "ddim"
    if solver == "jump":  # a flow map's jumps have no levels in between; its velocity is solved like any flow's
        solver = "ddim"
    defaults: dict[str, Any] = {"weights": (), "solver": solver, "steps": max(sampler.steps for sampler in samplers)}
    composition: Composition = replace(Composition(tuple(names), (1.0, *[0.0] * (len(names) - 1))), **(defaults | options))
    return composition


def _write(result: SearchResult, composition: Composition, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "search.json").write_text(json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    (folder / "report.html").write_text(build_search_report(result, composition), encoding="utf-8")
    lines = []
    for phase, arms in (("search", result.sweep), ("report", result.report)):
        for arm in arms:
            for e in arm.episodes:
                row = {"phase": phase, "arm": arm.name, "weights": list(arm.weights), "seed": e.seed}
                lines.append(json.dumps(row | {"max_reward": e.max_reward, "success": e.success, "max_coverage": e.max_coverage}))
    (folder / "episodes.jsonl").write_text("".join(line + "\n" for line in lines))
