"""What a source offers against what the user's schema asks of it."""

from __future__ import annotations

import math
from pathlib import Path

from kineflow.config import load_config
from kineflow.contracts import Interface, KineflowError, VectorSpec
from kineflow.datasets.importers.source import ImportOptions


def chosen(schema: Path | None, offered: Interface, where: str) -> Interface:
    """The interface of the store: `offered` as it is, or the schema, whose streams are named as the offered ones.

    Raises:
        KineflowError: the schema has a stream that `where` lacks, or of another shape; names both.
    """
    if schema is None:
        return offered
    asked = load_config(Interface, schema)
    have = {**offered.features, "action": offered.action}
    for name, spec in {**asked.features, "action": asked.action}.items():
        if name not in have:
            raise KineflowError(f"{schema} has the feature '{name}', {where} offers {sorted(have)}; correct the schema")
        if spec.vector.size != have[name].vector.size:
            raise KineflowError(
                f"{schema}: '{name}' has {spec.vector.size} dimensions {spec.vector.names}, in {where} it has "
                f"{have[name].vector.size} {have[name].vector.names}; correct the schema"
            )
    for name, camera in asked.cameras.items():
        found = offered.cameras.get(name)
        if found is None or found.frame_shape != camera.frame_shape:
            shape = f"frames of {list(found.frame_shape)}" if found else f"only the cameras {sorted(offered.cameras)}"
            raise KineflowError(
                f"{schema}: camera '{name}' has frames of {list(camera.frame_shape)}, {where} has {shape}; correct the schema"
            )
    return asked


def refuse_rate(options: ImportOptions, where: str) -> None:
    """Raise KineflowError when a rate is given for recordings that have clocks: an import never resamples."""
    if options.rate_hz is not None:
        raise KineflowError(
            f"{where} has time stamps of its own, so --rate-hz {options.rate_hz:g} has nothing to say; "
            "import without it, then put the streams on one clock with `kineflow data resample`, which states its rules"
        )


def not_chosen(chosen: Interface, offered: Interface) -> dict[str, str]:
    """Offered streams that the schema leaves out, with that reason."""
    names = {*offered.features, *offered.cameras} - {*chosen.features, *chosen.cameras}
    return dict.fromkeys(sorted(names), "the schema leaves it out")


def unbounded(names: tuple[str, ...], units: tuple[str, ...] | str, frame: str) -> VectorSpec:
    """A vector without limits; one unit for all where `units` is a word."""
    size = len(names)
    units = (units,) * size if isinstance(units, str) else units
    return VectorSpec(names, units, frame, (-math.inf,) * size, (math.inf,) * size)
