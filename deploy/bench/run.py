"""Benchmarks of deployment, for `kineflow.policies.bench.run.run_bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kineflow.bench_row import Row
from kineflow.deploy.bench.node import bench_node
from kineflow.deploy.bench.rtc import bench_rtc
from kineflow.deploy.bench.serve import bench_serve
from kineflow.deploy.export.bench import bench_export

BENCHES: dict[str, Callable[..., Iterator[Row]]] = {
    "rtc": bench_rtc,
    "export": bench_export,
    "node": bench_node,
    "serve": bench_serve,
}
