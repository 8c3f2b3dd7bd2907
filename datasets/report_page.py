"""The page of a store: what it holds, what it looks like, when what was recorded, and what the doctor found.

One HTML file without any request, for light and dark, desk and phone. `report_page.html` holds the page and its style; this
module fills in words, pictures and charts (report_charts.py). Whatever comes from a file or a name is escaped.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from kineflow.datasets.doctor import Finding, grouped
from kineflow.datasets.doctor_checks.recordings import Recordings
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError, new_ulid
from kineflow.datasets.report_charts import Mark, histogram, motion, number, timeline, value_range
from kineflow.datasets.store_report import StoreReport, inspect_store

SHOWN_EPISODES = 14  # with timelines: those with findings, worst first, then some others
_PICTURED = 4  # episodes
_PICTURE_PX = 240  # at most, along the longer side
_LISTED = 12  # places of one kind of finding
_TEMPLATE = Path(__file__).with_name("report_page.html")
_TITLES = {
    "integrity": "Damage",
    "empty": "Empty episodes",
    "limits": "Values outside the limits",
    "rate": "Rate is not the nominal one",
    "rate_drift": "Rate drifts",
    "jitter": "Jitter",
    "dropped": "Lost samples",
    "clock_jump": "Clock jumps",
    "late_start": "Starts late",
    "early_end": "Ends early",
    "duplicate": "Repeated frames",
    "idle": "Standing still",
    "constant": "Never changes",
    "outlier": "Outliers",
    "saturation": "Saturation",
    "camera_swap": "Cameras exchanged",
    "short": "Episodes of one step",
    "split": "Splits",
}
_OF_VALUES = ("idle", "outlier", "saturation", "limits")  # shown on the motion of an episode, not on the clock of a stream


def write_page(store: Path, findings: Sequence[Finding], file: Path) -> None:
    """Write the page of the store at `store` as `file`, complete or not at all.

    Of a store that cannot be read the page has the findings only.
    """
    text = build_page(Path(store), findings)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{new_ulid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def build_page(path: Path, findings: Sequence[Finding]) -> str:
    """The page as HTML text."""
    try:
        report, store = inspect_store(path), EpisodeStore.open(path)
        recordings = Recordings(store)
        shown = _chosen(recordings, findings)
        parts = {
            "subtitle": _subtitle(report),
            "chips": _chips(report),
            "headlines": _headlines(report, findings),
            "pictures": _pictures(store, shown, findings),
            "timelines": "".join(_episode(recordings, episode, findings) for episode in shown),
            "shown": _shown(len(shown), report.episodes),
            "lengths": histogram([_lasts(recordings, e) for e in range(report.episodes)], "s") if report.episodes else "",
            "facts": _facts(report),
            "values": _values(report),
        }
    except StoreError as error:
        shown = []
        why = f'<p class="empty">Not shown, because the store cannot be read: {html.escape(str(error))}</p>'
        parts = dict.fromkeys(("pictures", "timelines", "lengths", "facts", "values"), why)
        parts |= {"subtitle": "cannot be read", "chips": "", "headlines": "", "shown": ""}
    name = html.escape(Path(path).name)
    found = _findings(findings, set(shown))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        parts, name=name, findings=found, path=html.escape(str(path))
    )


def _subtitle(report: StoreReport) -> str:
    contents = f"{_count(len(report.streams), 'stream')} · {_count(len(report.cameras), 'camera')}"
    return html.escape(f"{contents} · clock {report.clock} · {report.provenance or 'source not recorded'}")


def _count(number_of: int, what: str) -> str:
    return f"{number_of:,} {what}{'s' * (number_of != 1)}"


def _chips(report: StoreReport) -> str:
    facts = {
        "format": f"version {report.version}, generation {report.generation}",
        "licence": report.licence or "not recorded",
        "fingerprint": report.fingerprint[:12],
        "splits": ", ".join(f"{name} {count}" for name, count in report.splits.items()) or "none",
    }
    return "".join(f"<li><span>{key}</span>{html.escape(value)}</li>" for key, value in facts.items())


def _headlines(report: StoreReport, findings: Sequence[Finding]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    verdict = "sound" if not findings else str(len(findings))
    css = "bad" if errors else ("odd" if warnings else "good")
    hint = "nothing is wrong or odd" if not findings else f"{_count(errors, 'error')}, {_count(warnings, 'warning')}"
    minutes = report.duration_s / 60
    lasts = f"{minutes:.1f}<small> min</small>" if minutes >= 2 else f"{report.duration_s:.1f}<small> s</small>"
    size = f"{report.bytes / 1e9:.2f}<small> GB</small>" if report.bytes >= 1e9 else f"{report.bytes / 1e6:.1f}<small> MB</small>"
    outcome = (
        f"{report.succeeded} succeeded, {report.failed} failed" if report.succeeded + report.failed else "outcome not recorded"
    )
    cards = (
        ("Episodes", f"{report.episodes:,}", outcome, ""),
        ("Recorded", lasts, f"{report.steps:,} steps", ""),
        ("On disk", size, _count(report.segments, "segment"), ""),
        ("Doctor", verdict, hint, css),
    )
    return "".join(
        f'<div class="card score"><h3>{title}</h3><p class="big {css}">{value}</p><p class="hint">{html.escape(below)}</p></div>'
        for title, value, below, css in cards
    )


def _findings(findings: Sequence[Finding], shown: set[int]) -> str:
    if not findings:
        return (
            '<p class="card empty">Nothing: every byte that was read is as it was written, and no check found anything odd.</p>'
        )
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for group in grouped(findings):
        for finding in group:
            groups.setdefault((finding.severity, finding.kind, finding.stream), []).append(finding)
    return "".join(_group(group, shown) for group in groups.values())


def _group(group: Sequence[Finding], shown: set[int]) -> str:
    first = group[0]
    title = html.escape(_TITLES.get(first.kind, first.kind))
    stream = f"<code>{html.escape(first.stream)}</code>" if first.stream else ""
    count = f'<span class="count">{len(group)} places</span>' if len(group) > 1 else ""
    items = "".join(f"<li>{_place(finding, shown)} {html.escape(finding.problem)}</li>" for finding in group[:_LISTED])
    if len(group) > _LISTED:
        rest = sorted({f.episode for f in group[_LISTED:] if f.episode is not None})
        listed = ", ".join(map(str, rest[:40])) + (", ..." if len(rest) > 40 else "")
        items += f"<li>and {len(group) - _LISTED} more{f', in episodes {listed}' if rest else ''}</li>"
    return (
        f'<article class="card finding {first.severity}"><h3><span class="pill {first.severity}">{first.severity}</span>'
        f"{title} {stream}{count}</h3><ul>{items}</ul>"
        f'<p class="remedy"><b>What to do</b> {_with_code(first.remedy)}</p></article>'
    )


def _with_code(text: str) -> str:
    """Escaped, and what stands between backquotes as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _place(finding: Finding, shown: set[int]) -> str:
    if finding.episode is None:
        return f"<b>{html.escape(finding.where)}</b>" if finding.kind == "integrity" else ""
    at = f" at {finding.spans_s[0][0]:.2f} s" if finding.spans_s else ""
    text = f"episode {finding.episode}{at}"
    return f'<a href="#episode-{finding.episode}">{text}</a>' if finding.episode in shown else f"<b>{text}</b>"


def _chosen(recordings: Recordings, findings: Sequence[Finding]) -> list[int]:
    """Of each kind of finding the worst ones first, in turns; then the first, the middle and the last episode."""
    queues = [[f.episode for f in group if f.episode is not None] for group in grouped(findings)]
    wanted = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    known = [e for e in dict.fromkeys(wanted) if e < recordings.number][: SHOWN_EPISODES - _PICTURED]
    others = np.linspace(0, recordings.number - 1, _PICTURED).round().astype(int).tolist() if recordings.number else []
    return sorted({*known, *others})


def _shown(shown: int, episodes: int) -> str:
    return "all episodes" if shown == episodes else f"{shown} of {episodes} episodes: those with findings first"


def _episode(recordings: Recordings, episode: int, findings: Sequence[Finding]) -> str:
    mine = [finding for finding in findings if finding.episode == episode]
    lasts = max(_lasts(recordings, episode), 1e-3)
    rows = ""
    for clock in recordings.clocks:
        seconds = (recordings.stamps(clock.name, episode) - recordings.starts[episode]) / 1e9
        names = ", ".join(clock.streams)
        marks = _marks(f for f in mine if f.kind not in _OF_VALUES and f.stream in clock.streams)
        bar = timeline(seconds, lasts, clock.rate_hz, marks, f"{len(seconds)} samples of {names}")
        detail = html.escape(f"{names}: {len(seconds):,} samples, nominal {clock.rate_hz:g} Hz")
        rows += f'<div class="row"><span class="name" title="{detail}">{html.escape(names)}</span>{bar}</div>'
    seconds, change = _change(recordings, episode)
    marks = _marks(f for f in mine if f.kind in _OF_VALUES)
    slowest = min((clock.rate_hz for clock in recordings.clocks), default=1.0)
    area = motion(seconds, change, lasts, slowest, marks)
    rows += f'<div class="row"><span class="name">what changes</span>{area}</div>'
    scale = "".join(f"<span>{share * lasts:.3g}{' s' if share == 1 else ''}</span>" for share in (0, 0.25, 0.5, 0.75, 1))
    notes = "".join(
        f'<li class="{f.severity}"><b>{html.escape(_TITLES.get(f.kind, f.kind))}</b> {html.escape(f.problem)}</li>'
        for f in mine[:6]
    )
    facts = f"{recordings.store.lengths[episode]:,} steps · {number(lasts)} s"
    return (
        f'<article class="card episode" id="episode-{episode}"><h3>Episode {episode}<span class="count">{facts}</span></h3>{rows}'
        f'<p class="scale axis">{scale}</p>{f"<ul>{notes}</ul>" if notes else ""}</article>'
    )


def _lasts(recordings: Recordings, episode: int) -> float:
    """Seconds from the first to the last sample of any stream."""
    return recordings.seconds(episode, max(recordings.stamps(clock.name, episode)[-1] for clock in recordings.clocks))


def _marks(findings: Iterable[Finding]) -> list[Mark]:
    return [
        Mark(start, stop, f.severity == "error", f"{_TITLES.get(f.kind, f.kind)}: {f.problem}")
        for f in findings
        for start, stop in f.spans_s
    ]


def _change(recordings: Recordings, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and changes of all low-dimensional values, each as a share of its usual range."""
    times, changes = [], []
    for name in recordings.moving_streams:
        scale, values = recordings.scale(name), recordings.values(name, episode).astype(np.float64)
        seen = recordings.visible(name)
        if not seen.any():
            continue
        # At most the usual range: one leap must not make all else look still.
        share = np.minimum(np.abs(np.diff(values[:, seen], axis=0)) / scale[seen], 1)
        times.append((recordings.stamps(name, episode)[1:] - recordings.starts[episode]) / 1e9)
        changes.append(share.mean(1))
    return np.concatenate([np.zeros(0), *times]), np.concatenate([np.zeros(0), *changes])


def _pictures(store: EpisodeStore, shown: Sequence[int], findings: Sequence[Finding]) -> str:
    if not store.interface.cameras:
        return '<p class="card empty">No cameras.</p>'
    spread = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, _PICTURED).round().astype(int))] if shown else []
    exchanged = [f.episode for f in findings if f.kind == "camera_swap" and f.episode in shown]
    picked = sorted([*dict.fromkeys([*exchanged[:2], *spread])][:_PICTURED])
    return "".join(_camera(store, name, picked) for name in store.interface.cameras)


def _camera(store: EpisodeStore, name: str, episodes: Sequence[int]) -> str:
    camera, figures = store.interface.cameras[name], ""
    for episode in episodes:
        length = int(store.stream_lengths(name)[episode])
        steps = sorted({0, (length - 1) // 2, length - 1})
        images = "".join(
            f'<img loading="eager" alt="{html.escape(name)}, episode {episode}, frame {step}" title="frame {step}" '
            f'src="{_jpeg(store.frames(name, episode, step, step + 1)[0])}">'
            for step in steps
        )
        figures += f'<figure><div class="strip">{images}</div><figcaption>episode {episode}</figcaption></figure>'
    facts = f"{camera.width} × {camera.height}, {camera.kind}, {camera.rate_hz:g} Hz"
    head = f'<h3><code>{html.escape(name)}</code><span class="count">{facts}</span></h3>'
    return f'<article class="card camera">{head}<div class="figures">{figures}</div></article>'


def _jpeg(frame: np.ndarray) -> str:
    """A thumbnail; depth as grey from near (bright) to far, holes black."""
    if frame.ndim == 2:
        known = frame[frame > 0]
        near, far = np.quantile(known, [0.02, 0.98]) if known.size else (0, 1)
        grey = np.where(frame > 0, 255 - 215 * np.clip((frame - near) / max(far - near, 1), 0, 1), 0)
        frame = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return f"data:image/jpeg;base64,{base64.b64encode(simplejpeg.encode_jpeg(_small(frame), 82, 'RGB', '444')).decode('ascii')}"


def _small(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Shrunk by a whole number, by the mean of the pixels that fall together."""
    by = -(-max(frame.shape[:2]) // _PICTURE_PX)
    height, width = frame.shape[0] // by * by, frame.shape[1] // by * by
    if by == 1 or not height or not width:
        return np.ascontiguousarray(frame)
    blocks = frame[:height, :width].reshape(height // by, by, width // by, by, 3)
    return np.ascontiguousarray(blocks.mean((1, 3)).round().astype(np.uint8))


def _facts(report: StoreReport) -> str:
    unknown = report.episodes - report.succeeded - report.failed
    rows = {
        "episodes": f"{report.episodes:,} of {report.shortest:,} to {report.longest:,} steps",
        "tasks": ", ".join(f"{text} ({count})" for text, count in list(report.tasks.items())[:8]) or "no instructions",
        "splits": ", ".join(f"{name} ({count})" for name, count in report.splits.items()) or "none recorded",
        "outcome": f"{report.succeeded} succeeded, {report.failed} failed, {unknown} not recorded",
        "source": report.provenance or "not recorded",
        "licence": report.licence or "not recorded",
        "fingerprint": report.fingerprint,
    }
    body = "".join(f'<tr><th scope="row">{key}</th><td>{html.escape(value)}</td></tr>' for key, value in rows.items())
    return f'<table class="facts">{body}</table>'


def _values(report: StoreReport) -> str:
    parts = ""
    for name, stream in report.streams.items():
        rate = f"{stream.samples:,} samples, {number(stream.measured_hz)} Hz measured, {stream.rate_hz:g} nominal"
        rows = ""
        statistics = report.statistics.get(name)
        for d, (dimension, unit) in enumerate(zip(stream.names, stream.units, strict=True) if statistics else ()):
            low, q01, mean, q99, high = (getattr(statistics, key)[d] for key in ("min", "q01", "mean", "q99", "max"))
            label = f"{dimension}: {number(low)} to {number(high)}, mean {number(mean)}, 98 % in {number(q01)} to {number(q99)}"
            rows += (
                f'<tr><th scope="row">{html.escape(dimension)} <span class="unit">{html.escape(unit)}</span></th>'
                f"<td>{number(low)}</td><td class='wide'>{value_range(low, q01, mean, q99, high, label)}</td>"
                f"<td>{number(high)}</td><td class='more'>{number(mean)}</td>"
                f"<td class='more'>{number(q01)} … {number(q99)}</td></tr>"
            )
        head = "<tr><th></th><th>min</th><th class='wide'></th><th>max</th><th class='more'>mean</th>"
        head += "<th class='more'>1 % … 99 %</th></tr>"
        table = f'<div class="scroll"><table class="values"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
        opened = " open" if len(stream.names) <= 12 else ""
        parts += (
            f"<details{opened}><summary><code>{html.escape(name)}</code> {len(stream.names)} "
            f"dimension{'s' * (len(stream.names) != 1)}<span class='count'>{rate}</span></summary>{table}</details>"
        )
    for name, camera in report.cameras.items():
        loss = "lossy" if camera.lossy else "lossless"
        size, rate = f"{camera.bytes / 1e6:.1f} MB", f"{number(camera.measured_hz)} Hz measured"
        text = html.escape(f"{camera.codec}, {loss}, {size}, {camera.frames:,} frames, {rate}")
        title = f"<code>{html.escape(name)}</code> {camera.width} × {camera.height}"
        parts += f'<p class="line">{title} <span class="count">{text}</span></p>'
    return parts
