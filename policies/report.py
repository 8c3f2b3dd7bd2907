"""The evaluation report: one HTML file without any external request, for light and dark, desk and phone.

`report_template.html` holds the page, its style and its script; this module fills in scores and words (report_parts.py), charts
(charts.py), pictures and videos. Whatever comes from a file or a name is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import yaml
from jaxtyping import UInt8
from PIL import Image

from kineflow.config import to_plain_config
from kineflow.contracts import KineflowError, PolicyContract, to_json
from kineflow.policies.charts import Series, empty_chart, histogram, interval_bar, line_chart, number, smooth, sparkline, thin
from kineflow.policies.eval_result import EvalConfig, EvalResult
from kineflow.policies.intervals import Percentiles
from kineflow.policies.report_parts import Column, Description, Distribution, Headline, Outcome
from kineflow.policies.running_episode import EpisodeResult
from kineflow.policies.video import video_size

_WIDE = 1.6  # a picture that is so many times as wide as high has a row of the gallery to itself
_UNSEEN = 0.6  # mean error of a picture's bytes that nobody sees
_TEMPLATE = Path(__file__).with_name("report_template.html")


@dataclass(frozen=True)
class Metric:
    """One line of a run's metrics.jsonl."""

    step: int
    loss: float | None
    validation_loss: float | None
    lr: float | None
    time_s: float


@dataclass(frozen=True)
class Clip:
    """One episode's video and its place in the ranking."""

    label: str
    episode: EpisodeResult
    path: Path


@dataclass(frozen=True)
class Fan:
    """Chunks sampled from one observation, drawn over its picture."""

    picture: UInt8[np.ndarray, "H W 3"]
    seed: int
    step: int


@dataclass(frozen=True)
class ReportPage:
    """Everything that the page shows."""

    name: str
    config: EvalConfig
    contract: PolicyContract
    result: EvalResult
    description: Description
    manifest: Mapping[str, Any]
    training: Sequence[Metric]
    run_config: str  # YAML of the training run; empty when there is none
    clips: Sequence[Clip]
    fans: Sequence[Fan]


def build_report(page: ReportPage) -> str:
    """The page as HTML text."""
    result, said = page.result, page.description
    gallery, videos = _videos(page)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{page.name} · Kineflow evaluation"),
        name=html.escape(page.name),
        task=html.escape(said.task),
        subtitle=_subtitle(page),
        chips=_chips(page),
        headlines="".join(_score_card(headline) for headline in said.headlines) + _call_card(page),
        videos_lead=_words(said.videos),
        gallery=gallery,
        videos=videos,
        fans_lead=_words(said.fans),
        fans=_fans(page),
        training=_training(page.training),
        outcomes_lead=_words(said.outcomes),
        distribution_heading=html.escape(said.distribution.heading),
        distribution=_distribution(said.distribution),
        latency_chart=_latency_chart(result),
        latency=_latency_table(page),
        episode_count=str(len(result.episodes)),
        seeds_lead=_words(said.seeds),
        columns="".join(_column_head(title) for title in ("Seed", "Outcome", *(column.title for column in said.columns))),
        episodes="".join(_episode_row(page, i) for i in range(len(result.episodes))),
        command=html.escape(said.command),
        config=html.escape(page.run_config or "(evaluated without its training run)"),
        eval_config=html.escape(yaml.safe_dump(to_plain_config(page.config), sort_keys=False)),
        manifest=html.escape(to_json(page.manifest)),
    )


def read_metrics(path: Path) -> tuple[Metric, ...]:
    """Lines of metrics.jsonl in order of steps; a resumed run's later line for a step wins. No file: no lines.

    Raises:
        KineflowError: a line that is not JSON, except a last line cut short by a killed run.
    """
    if not path.is_file():
        return ()
    metrics: dict[int, Metric] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if i == len(lines) - 1:  # no newline behind it: the run was killed while writing
                continue
            raise KineflowError(f"{path}, line {i + 1}: not JSON ({error}); remove the line") from error
        old = metrics.get(row["step"])
        metrics[row["step"]] = Metric(
            step=row["step"],
            loss=row.get("loss", old.loss if old else None),
            validation_loss=row.get("validation_loss", old.validation_loss if old else None),
            lr=row.get("lr", old.lr if old else None),
            time_s=row.get("time_s", 0.0),
        )
    return tuple(metrics[step] for step in sorted(metrics))


def _subtitle(page: ReportPage) -> str:
    rate = page.contract.interface.action.rate_hz
    created = str(page.manifest["created"])[:16].replace("T", " ")
    return html.escape(f"{page.description.starts} · control at {number(rate)} Hz · {created} UTC")


def _chips(page: ReportPage) -> str:
    sampler, horizons, code = page.contract.sampler, page.contract.horizons, page.manifest["code"]
    commit = f" @ {code['git'][:7]}{'+' if code['dirty'] else ''}" if code["git"] else ""
    facts = {
        "path": f"{sampler.path} · {sampler.prediction}",
        "sampler": f"{sampler.solver} × {sampler.steps}, grid {sampler.grid}",
        "observe / predict / execute": f"{horizons.observation} / {horizons.prediction} / {horizons.execution}",
        "data": page.contract.dataset_hash[:10],
        "kineflow": f"{code['kineflow']}{commit}",
    }
    return "".join(f"<li><span>{html.escape(k)}</span>{html.escape(v)}</li>" for k, v in facts.items())


def _call_card(page: ReportPage) -> str:
    call = page.result.policy_call_ms
    return (
        f'<div class="card score"><h3>Policy call</h3><p class="big">{number(call.p50)}<small> ms</small></p>'
        f'<p class="range">p99 {number(call.p99)} ms</p>'
        f'<p class="hint">median of {call.n} calls of {page.config.batch} rows</p></div>'
    )


def _score_card(headline: Headline) -> str:
    score, unit = headline.score, headline.unit
    if unit == "%":
        value = f"{100 * score.value:.1f}<small> %</small>"
    else:
        value = f"{score.value:.2f}<small> m</small>" if unit == "m" else f"{score.value:.3f}"
    ends = f"{score.low:.2f} – {score.high:.2f} m" if unit == "m" else f"{score.low:.3f} – {score.high:.3f}"
    return (
        f'<div class="card score"><h3>{html.escape(headline.title)}</h3><p class="big">{value}</p>'
        f"{interval_bar(score.value, score.low, score.high, headline.end)}"
        f'<p class="range">95 % interval <b>{ends}</b></p><p class="hint">{html.escape(headline.hint)}</p></div>'
    )


def _words(text: str) -> str:
    """Escaped; `{ramp}` becomes the colours of a plan, words in backquotes code."""
    parts = html.escape(text).replace("{ramp}", '<span class="ramp"></span>').split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _videos(page: ReportPage) -> tuple[str, str]:
    """CSS classes of the gallery, and what is in it."""
    if not page.clips:
        return "three", f'<p class="empty">{_words(page.description.videos_hint)}</p>'
    sizes = [video_size(clip.path) for clip in page.clips]
    is_wide = sizes[0][0] > _WIDE * sizes[0][1]
    return "wide" if is_wide else "three", "".join(_video(page, clip, size) for clip, size in zip(page.clips, sizes))


def _video(page: ReportPage, clip: Clip, size: tuple[int, int]) -> str:
    said = page.description.episodes[page.result.episodes.index(clip.episode)]
    data = base64.b64encode(clip.path.read_bytes()).decode("ascii")
    label, trace = html.escape(clip.label), said.trace
    return (
        '<figure class="card clip"><video controls autoplay loop muted playsinline preload="auto" tabindex="0" '
        f'style="aspect-ratio: {size[0]} / {size[1]}" aria-label="{label} episode" src="data:video/mp4;base64,{data}"></video>'
        f"{sparkline(trace.values, trace.threshold, trace.high, trace.label)}"
        f'<figcaption><strong>{label}</strong>{_outcome(said.outcome)}<span class="facts">'
        f"{html.escape(said.facts)}</span></figcaption></figure>"
    )


def _outcome(outcome: Outcome) -> str:
    return f'<span class="pill {"yes" if outcome.is_good else "no"}">{html.escape(outcome.label)}</span>'


def _fans(page: ReportPage) -> str:
    return "".join(
        f'<figure class="card fan"><img alt="{page.config.fan_samples} chunks at step {fan.step}" src="{_picture(fan.picture)}">'
        f'<figcaption><strong>step {fan.step}</strong><span class="facts">seed {fan.seed}</span></figcaption></figure>'
        for fan in page.fans
    )


def _picture(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    """A PNG with a palette of 128 colours, which halves the file and nobody sees; of textures, where they do, a JPEG."""
    image, file = Image.fromarray(picture), io.BytesIO()
    few = image.quantize(128)
    if np.abs(np.asarray(few.convert("RGB"), np.int16) - picture).mean() < _UNSEEN:
        few.save(file, kind := "png", optimize=True)
    else:
        image.save(file, kind := "jpeg", quality=88, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _training(metrics: Sequence[Metric]) -> str:
    loss = [(float(m.step), m.loss) for m in metrics if m.loss is not None]
    validation = [(float(m.step), m.validation_loss) for m in metrics if m.validation_loss is not None]
    rate = [(float(m.step), m.lr) for m in metrics if m.lr is not None]
    if not loss and not validation:
        return f'<div class="card">{empty_chart("no metrics.jsonl beside this policy")}</div>'
    curves = [Series(thin(loss), "raw"), Series(thin(smooth(loss)), "accent", "training loss")]
    curves.append(Series(thin(validation, 60), "second dots", "validation loss"))
    minutes = metrics[-1].time_s / 60
    legend = '<p class="legend"><i class="accent"></i>training, smoothed<i class="second"></i>held-out episodes</p>'
    facts = f"{metrics[-1].step:,} steps in {minutes:.1f} min" if minutes else f"{metrics[-1].step:,} steps"
    return (
        f'<div class="card"><h3>Loss</h3>{legend}{line_chart(curves, "step", "loss", log_y=True)}</div>'
        f'<div class="card"><h3>Learning rate</h3><p class="legend">{facts}</p>'
        f"{line_chart([Series(thin(rate), 'accent', 'learning rate')], 'step', 'learning rate')}</div>"
    )


def _distribution(d: Distribution) -> str:
    chart = histogram(d.values, d.label, d.threshold, d.threshold_label, high=d.high, is_lower_better=d.is_lower_better)
    cells, word = "", "within" if d.is_lower_better else "at least"
    for level in d.levels:
        count = sum(value <= level if d.is_lower_better else value >= level for value in d.values)
        share = f"{100 * count / len(d.values):.0f} %"
        cells += f'<tr><th scope="row">{word} {level:.2f}{html.escape(d.unit)}</th><td>{count}</td><td>{share}</td></tr>'
    head = f"<thead><tr><th>{html.escape(d.label)}</th><th>episodes</th><th>share</th></tr></thead>"
    return f'{chart}<div class="scroll"><table class="plain">{head}<tbody>{cells}</tbody></table></div>'


def _latency_chart(result: EvalResult) -> str:
    calls = [(float(i + 1), 1e3 * s) for i, s in enumerate(result.call_s)]
    p50, p99 = result.policy_call_ms.p50, result.policy_call_ms.p99
    ends = (calls[0][0], calls[-1][0])
    levels = [Series([(x, level) for x in ends], css) for level, css in ((p50, "accent"), (p99, "second"))]
    return line_chart([Series(thin(calls), "raw solid", "policy call, ms:"), *levels], "policy call", "ms")


def _latency_table(page: ReportPage) -> str:
    result = page.result
    steps = sum(e.steps for e in result.episodes)
    rows = [
        _latency_row(f"policy call, {page.config.batch} rows", result.policy_call_ms),
        _latency_row("environment step", result.env_step_ms),
    ]
    shared = 1e3 * sum(result.call_s) / steps
    period = 1e3 / page.contract.interface.action.rate_hz
    note = (
        f"One call serves up to {page.config.batch} episodes and {page.contract.horizons.execution} steps of each: "
        f"{number(shared)} ms of policy per executed step. The control period is {number(period)} ms. "
        f"{steps:,} steps in {number(result.wall_s)} s, {number(steps / result.wall_s)} steps/s."
    )
    head = "<thead><tr><th></th><th>p50</th><th>p99</th><th>max</th><th>count</th></tr></thead>"
    return f'<table class="plain">{head}<tbody>{"".join(rows)}</tbody></table><p class="hint">{html.escape(note)}</p>'


def _latency_row(name: str, p: Percentiles) -> str:
    cells = "".join(f"<td>{number(v)} ms</td>" for v in (p.p50, p.p99, p.max))
    return f"<tr><th scope='row'>{html.escape(name)}</th>{cells}<td>{p.n:,}</td></tr>"


def _column_head(title: str) -> str:
    return f'<th><button type="button">{html.escape(title)}</button></th>'


def _episode_row(page: ReportPage, index: int) -> str:
    episode, outcome = page.result.episodes[index], page.description.episodes[index].outcome
    cells = [(str(episode.seed), str(episode.seed)), (str(int(outcome.is_good)), _outcome(outcome))]
    cells += [_cell(column, column.values[index]) for column in page.description.columns]
    return "<tr>" + "".join(f'<td data-value="{value}">{text}</td>' for value, text in cells) + "</tr>"


def _cell(column: Column, value: float) -> tuple[str, str]:
    """What it is sorted by, and what it shows."""
    share = min(max(value, 0.0), 1.0)
    meter = f'<span class="meter"><i style="width:{100 * share:.1f}%"></i></span>' if column.as_meter else ""
    return f"{value:.6f}", f"{meter}{format(value, column.format)}"
