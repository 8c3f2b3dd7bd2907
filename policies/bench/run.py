"""Which benchmarks there are. `kineflow bench all` runs each and writes benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from kineflow.contracts import KineflowError
from kineflow.datasets.bench.crash import bench_crash
from kineflow.datasets.bench.data import bench_data
from kineflow.policies.bench.compose import bench_compose
from kineflow.policies.bench.env import bench_env
from kineflow.policies.bench.flow import bench_flow
from kineflow.policies.bench.head import bench_head
from kineflow.policies.bench.policy import bench_policy
from kineflow.policies.bench.rows import BenchReport, Row
from kineflow.policies.bench.sampler import bench_sampler
from kineflow.policies.bench.train import bench_train

BENCHES: dict[str, Callable[..., Iterator[Row]]] = {
    "head": bench_head,
    "compose": bench_compose,
    "train": bench_train,
    "sampler": bench_sampler,
    "crash": bench_crash,
    "data": bench_data,
    "env": bench_env,
    "flow": bench_flow,
    "policy": bench_policy,
}


def run_bench(
    name: str, *, quick: bool, kills: int | None = None, more: Mapping[str, Callable[..., Iterator[Row]]] | None = None
) -> BenchReport:
    """Run one benchmark, or all of them; rows are shown as they come. `kills` is an option of "crash" only. `more`: benchmarks
    of folders that stand on this one.

    Raises:
        KineflowError: `kills` of another benchmark, or less than one.
    """
    if kills is not None and (name != "crash" or kills < 1):
        raise KineflowError(f"bench {name}: --kills {kills}; it is a number above 0, of `bench crash` alone")
    benches = {**BENCHES, **(more or {})}
    names = list(benches) if name == "all" else [name]
    rows: list[Row] = []
    with Console(stderr=True).status("measuring") as status:
        for bench in names:
            for row in benches[bench](quick=quick, **({"kills": kills} if bench == "crash" and kills else {})):
                rows.append(row)
                status.update(f"measured {row.name}")
    report = BenchReport(rows)
    if name == "all":
        report.write_markdown(Path("benchmarks.md"))
    return report
