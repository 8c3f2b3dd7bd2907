"""`kineflow table`: policies x bodies x ways to tell the goal, one cell after the other, the most important first.

    out/<policy>/<body>_<goal>_<loop>/episodes.jsonl    a line as soon as an episode has ended; first line: what was evaluated
    out/table.md, table.json                            written anew after each cell

A job that was stopped goes on at the episode where it was: an episode depends on its seed and the policy alone. A cell whose
policy or settings have changed since begins anew.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kineflow.contracts import KineflowError, to_plain
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.intervals import Estimate, bootstrap_interval, wilson_interval
from kineflow.policies.navigation_trial import NavigationTrial

Progress = Callable[[int, int], None]  # episodes done, of how many


@dataclass(frozen=True)
class TableConfig:
    """What the table holds. `policies`: name -> run folder, checkpoint or kineflow:// name.

    `columns` are "GOAL LOOP"; cells are done column by column, in a column policy by policy. `episodes`: of each body's cells.
    """

    policies: Mapping[str, str]
    embodiments: tuple[str, ...] = ("wheeled", "drone", "humanoid")
    columns: tuple[str, ...] = ("video closed", "video open", "image closed", "instruction closed")
    episodes: Mapping[str, int] = field(default_factory=lambda: {"wheeled": 200, "drone": 200, "humanoid": 100})
    seed_start: int = 100_000
    num_envs: int = 8
    trial: NavigationTrial = field(default_factory=lambda: NavigationTrial(time_limit_s=45.0))  # but body, goal and loop

    def __post_init__(self) -> None:
        if not self.policies or not self.embodiments or not self.columns:
            raise KineflowError("a table needs policies, embodiments and columns, at least one of each")
        if missing := [body for body in self.embodiments if self.episodes.get(body, 0) < 1]:
            raise KineflowError(f"table: episodes names {dict(self.episodes)}, nothing for {missing}; give each body a number")
        for column in self.columns:
            self.evaluation(self.embodiments[0], column)

    def evaluation(self, embodiment: str, column: str) -> EvalConfig:
        """Raises KineflowError for a column or body that is none."""
        goal, _, loop = column.partition(" ")
        known = (("video", "image", "instruction"), ("closed", "open"), ("wheeled", "drone", "humanoid"))
        for value, choices in zip((goal, loop, embodiment), known):
            if value not in choices:
                raise KineflowError(f"table: '{value}' in column '{column}' of {embodiment}; choose one of {choices}")
        trial = replace(self.trial, embodiment=embodiment, goal=goal, loop=loop)  # type: ignore[arg-type]
        count = self.episodes[embodiment]
        return EvalConfig(
            "navigation", trial, "table", count, self.seed_start, num_envs=self.num_envs, batch=self.num_envs, videos=0
        )


@dataclass(frozen=True)
class Cell:
    """One policy, told its goal in one way, with one body. `result` is None while nothing was driven."""

    policy: str
    source: str
    embodiment: str
    column: str

    def folder(self, out: Path) -> Path:
        return out / self.policy / f"{self.embodiment}_{self.column.replace(' ', '_')}"


def fill(config: TableConfig, out: Path, workers: int = 1, progress: Progress = lambda done, of: None) -> list[dict[str, Any]]:
    """Drive what is missing, in `workers` processes; returns a row per cell (see `rows`). Policies that do not take a goal have
    no cell for it.

    Raises:
        KineflowError: a policy that cannot be loaded, or whose evaluation fails; what was driven stays.
    """
    cells = _cells(config)
    total, done = sum(config.episodes[cell.embodiment] for cell in cells), 0
    # spawn: a forked process would share the parent's OpenGL context, threads and locks.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run_cell, cell, config, out) for cell in cells}
        while running:
            finished, running = wait(running, timeout=2.0, return_when=FIRST_COMPLETED)
            done = sum(len(_episodes(cell.folder(out))) for cell in cells)
            progress(done, total)
            if finished:
                _raise_failure(finished, running)
                write(config, cells, out)
    return write(config, cells, out)


def run_cell(cell: Cell, config: TableConfig, out: Path) -> None:
    """Drive the episodes of one cell that its file does not hold yet."""
    import torch

    from kineflow.policies.evaluation import episode_row, evaluation_rollout
    from kineflow.policies.load import load_policy

    torch.set_num_threads(1)
    policy, evaluation = load_policy(cell.source), config.evaluation(cell.embodiment, cell.column)
    file, head = cell.folder(out) / "episodes.jsonl", {"policy": _digest(policy), "trial": to_plain(evaluation.navigation)}
    file.parent.mkdir(parents=True, exist_ok=True)
    if _head(file) != head:
        file.write_text(json.dumps(head) + "\n")
    known = {row["seed"] for row in _episodes(file.parent)}
    seeds = [seed for seed in evaluation.seeds if seed not in known]
    if not seeds:
        return
    rollout = evaluation_rollout(policy, replace(evaluation, episodes=len(seeds)))
    with open(file, "a", encoding="utf-8") as log:
        for episode in rollout.run(seeds):
            log.write(json.dumps(episode_row(episode), allow_nan=False) + "\n")
            log.flush()


def rows(cells: list[Cell], out: Path, counts: Mapping[str, int], seed: int) -> Iterator[dict[str, Any]]:
    """For each cell its scores as `Estimate`s, None where no episode was driven; `asked` says how many are wanted."""
    for cell in cells:
        driven = [row for row in _episodes(cell.folder(out)) if row["seed"] < seed + counts[cell.embodiment]]
        yield {
            "policy": cell.policy,
            "embodiment": cell.embodiment,
            "column": cell.column,
            "asked": counts[cell.embodiment],
            **(_scores(driven, seed) if driven else {"success": None}),
        }


def write(config: TableConfig, cells: list[Cell], out: Path) -> list[dict[str, Any]]:
    """table.json and table.md from what was driven so far."""
    table = [to_plain(row) for row in rows(cells, out, config.episodes, config.seed_start)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(table, indent=2) + "\n")
    (out / "table.md").write_text(markdown(config, table))
    return table


def markdown(config: TableConfig, table: list[dict[str, Any]]) -> str:
    """Success in percent with its 95 % Wilson interval, n where fewer episodes were driven than asked for."""
    found = {(row["policy"], row["embodiment"], row["column"]): row for row in table}
    lines = []
    for column in config.columns:
        lines += [f"### {column}, success within {config.trial.radius_m:g} m", ""]
        lines += ["| policy | " + " | ".join(config.embodiments) + " |", "|---" * (1 + len(config.embodiments)) + "|"]
        for policy in config.policies:
            texts = [_text(found.get((policy, body, column))) for body in config.embodiments]
            lines.append(f"| {policy} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def _text(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["success"] is None:
        return "not driven"
    success = Estimate(**row["success"])
    short = f", n = {success.n}" if success.n < row["asked"] else ""
    return f"{100 * success.value:.1f} [{100 * success.low:.0f}, {100 * success.high:.0f}]{short}"


def _scores(driven: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    count = len(driven)
    succeeded = [row for row in driven if row["success"]]
    weighted = [row["success"] * row["shortest_length"] / max(row["path_length"], row["shortest_length"]) for row in driven]
    scores: dict[str, Any] = {
        "success": wilson_interval(len(succeeded), count),
        "success_05m": wilson_interval(sum(row["success_05m"] for row in succeeded), count),
        "spl": bootstrap_interval(weighted, seed),
        "false_stops": wilson_interval(sum(row["false_stops"] > 0 for row in driven), count),
        "outcomes": {word: sum(row["outcome"] == word for row in driven) for word in sorted({row["outcome"] for row in driven})},
    }
    if succeeded:
        scores["stop_accuracy"] = wilson_interval(sum(row["stop_ok"] for row in succeeded), len(succeeded))
    for name in ("goal_error", "ate", "collisions"):
        scores[name] = bootstrap_interval([float(row[name]) for row in driven], seed)
    return scores


def _cells(config: TableConfig) -> list[Cell]:
    from kineflow.policies.load import load_policy

    takes = {}
    for name, source in config.policies.items():
        try:
            takes[name] = set(load_policy(source).contract.interface.goals)
        except KineflowError as error:
            raise KineflowError(
                f"table: policy '{name}' cannot be loaded from {source}; train it first, or leave it out of `policies`: {error}"
            ) from error
    return [
        Cell(name, source, body, column)
        for column in config.columns
        for name, source in config.policies.items()
        for body in config.embodiments
        if column.partition(" ")[0] in takes[name]
    ]


def _digest(policy: Any) -> str:
    """Of what a policy answers with: its golden pair and configuration change with the weights."""
    return hashlib.sha256(json.dumps(to_plain(asdict(policy.contract.golden)), sort_keys=True).encode()).hexdigest()[:16]


def _head(file: Path) -> Any:
    """The first line; None without one."""
    if not file.is_file():
        return None
    with open(file, encoding="utf-8") as lines:
        try:
            return json.loads(lines.readline())
        except json.JSONDecodeError:
            return None


def _episodes(folder: Path) -> list[dict[str, Any]]:
    """Lines of whole episodes; one that was cut short by a kill is driven again."""
    file, found = folder / "episodes.jsonl", []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return sorted({row["seed"]: row for row in found}.values(), key=lambda row: int(row["seed"]))


def _raise_failure(finished: set[Future[None]], running: set[Future[None]]) -> None:
    for future in finished:
        if error := future.exception():
            for other in running:
                other.cancel()
            raise error
