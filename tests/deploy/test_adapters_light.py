"""Adapters run on robots: NumPy and the standard library, beside our own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import kineflow.deploy.adapters.opening, kineflow.deploy.adapters.simulated_autopilot, kineflow.deploy.adapters.simulated_g1
print("\\n".join({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""


def test_adapters_load_nothing_but_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    heavy = {"torch", "scipy", "rclpy", "pymavlink", "cyclonedds", "unitree_sdk2py", "jaxtyping", "yaml", "tyro"}
    assert {"kineflow", "numpy"} <= loaded
    assert not loaded & heavy, loaded
