"""Strict loader: YAML or JSON to frozen dataclasses and back.

An unknown key, a wrong type or a missing field is a `ConfigError` that names file, path and near match. A union of
dataclasses is the registry: the mapping's `kind:` names the class; `kind: "their_module:TheirClass"` is the escape for
third parties. Overrides `--a.b value` are parsed by tyro with the loaded values as defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from kineflow.contracts import KineflowError, to_plain

T = TypeVar("T")
CONFIG_ROOT = Path(__file__).resolve().parent / "configs"


class ConfigError(KineflowError):
    """A configuration value that cannot be used; the message names file, path and remedy."""


def load_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` (a file, or a name below `configs/` such as `train/pusht_flow`) as `cls`; then apply `--a.b value`."""
    file = find_config(path)
    try:
        data = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    config: T = from_plain(cls, data, str(file))
    return apply_overrides(config, overrides)


def find_config(path: str | Path) -> Path:
    """The file itself, or `configs/<path>.yaml`; an error lists the near matches."""
    candidates = [Path(path), CONFIG_ROOT / f"{path}.yaml", CONFIG_ROOT / str(path)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(CONFIG_ROOT).with_suffix("")) for p in CONFIG_ROOT.rglob("*.yaml"))
    raise ConfigError(f"no configuration '{path}'{_did_you_mean(str(path), known)}; shipped ones: {', '.join(known)}")


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """`--a.b value` on top of `config`, typed and checked by tyro; `--help` lists every field."""
    if not overrides:
        return config
    import tyro

    # A union keeps the class that the file chose; its fields are plain flags, not subcommands.
    changed: T = tyro.cli(
        type(config), default=config, args=list(overrides), prog="kineflow ... NAME", config=(tyro.conf.AvoidSubcommands,)
    )
    return changed


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved configuration; `load_config` of it gives an equal value."""
    Path(path).write_text(yaml.safe_dump(to_plain_config(config), sort_keys=False))


def to_plain_config(value: Any) -> Any:
    """Like `to_plain`, with `kind:` in front of each dataclass so that unions can be read back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain_config(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": _kind_of(type(value)), **fields}
    if isinstance(value, Mapping):
        return {k: to_plain_config(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain_config(v) for v in value]
    return to_plain(value)


def from_plain(annotation: Any, data: Any, where: str) -> Any:
    """Build a value of type `annotation` from plain data; `where` prefixes every message ("file: a.b")."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _from_union(args, data, where)
    if origin is Literal:
        if data not in args:
            raise ConfigError(f"{where}: got {data!r}{_did_you_mean(str(data), [str(a) for a in args])}; one of {args}")
        return data
    if dataclasses.is_dataclass(annotation):
        return _from_mapping(annotation, data, where)
    if origin is tuple:
        return _from_sequence(args, data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {data!r}")
        return {str(k): from_plain(args[1], v, f"{where}.{k}") for k, v in data.items()}
    return _from_scalar(annotation, data, where)


def _from_mapping(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a mapping with the fields of {cls.__name__}, got {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    given = {k: v for k, v in data.items() if not (k == "kind" and "kind" not in fields)}
    names = (cls.__name__, f"{cls.__module__}:{cls.__name__}")
    if "kind" in data and "kind" not in fields and data["kind"] not in names:
        raise ConfigError(f"{where}.kind: expected {cls.__name__}, got {data['kind']!r}")
    for key in given:
        if key not in fields:
            raise ConfigError(
                f"{where}: unknown key '{key}'{_did_you_mean(str(key), list(fields))}; {cls.__name__} has {', '.join(fields)}"
            )
    for name, f in fields.items():
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: missing field '{name}' of {cls.__name__}; add `{name}: ...`")
    values = {k: from_plain(hints[k], v, f"{where}.{k}" if ": " in where else f"{where}: {k}") for k, v in given.items()}
    try:
        return cls(**values)
    except (ValueError, KineflowError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _from_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    classes: dict[str, Any] = {_kind_of(a): a for a in args if isinstance(a, type) and dataclasses.is_dataclass(a)}
    if isinstance(data, Mapping) and classes:
        kind = data.get("kind")
        if kind is None and len(classes) == 1:
            return _from_mapping(next(iter(classes.values())), data, where)
        if kind is None:
            raise ConfigError(f"{where}: missing field 'kind'; one of {', '.join(classes)} or 'module:Class'")
        cls = classes.get(str(kind)) or _third_party(str(kind), classes, where)
        return _from_mapping(cls, data, where)
    for arg in args:
        if arg is not type(None) and not dataclasses.is_dataclass(arg):
            try:
                return from_plain(arg, data, where)
            except ConfigError:
                continue
    names = ", ".join(getattr(a, "__name__", str(a)) for a in args)
    raise ConfigError(f"{where}: expected one of {names}, got {data!r}")


def _third_party(kind: str, classes: Mapping[str, Any], where: str) -> Any:
    if ":" not in kind:
        raise ConfigError(
            f"{where}.kind: unknown kind '{kind}'{_did_you_mean(kind, list(classes))}; "
            f"one of {', '.join(classes)} or 'module:Class'"
        )
    module, _, name = kind.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}.kind: cannot import '{kind}': {error}; is the package installed?") from error
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{where}.kind: '{kind}' is not a dataclass; a configuration class must be one")
    return cls


def _from_sequence(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {data!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(from_plain(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if len(args) != len(data):
        raise ConfigError(f"{where}: expected {len(args)} entries, got {len(data)}")
    return tuple(from_plain(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, data)))


def _from_scalar(annotation: Any, data: Any, where: str) -> Any:
    if annotation is float and data in ("inf", "-inf"):
        return math.inf if data == "inf" else -math.inf
    if annotation is float and isinstance(data, str):
        # YAML 1.1 reads 1e-3 as a string; nobody who writes it means one.
        try:
            return float(data)
        except ValueError:
            raise ConfigError(f"{where}: expected float, got {data!r}") from None
    if annotation is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if annotation is Path and isinstance(data, str):
        return Path(data)
    if not isinstance(data, annotation) or (isinstance(data, bool) and annotation is not bool):
        raise ConfigError(f"{where}: expected {annotation.__name__}, got {data!r} ({type(data).__name__})")
    return data


def _kind_of(cls: type) -> str:
    return cls.__name__ if cls.__module__.startswith("kineflow") else f"{cls.__module__}:{cls.__name__}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
