"""The evaluation report: one HTML file without any external request, for light and dark, desk and phone.

`report_template.html` holds the page, its style and its script; this module fills in words, charts (charts.py), pictures
and videos. Whatever comes from a file or a name is escaped.
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
from kineflow.envs.pusht import SUCCESS_COVERAGE
from kineflow.policies.charts import Series, empty_chart, histogram, interval_bar, line_chart, number, smooth, sparkline, thin
from kineflow.policies.eval_result import EvalConfig, EvalResult
from kineflow.policies.intervals import Estimate, Percentiles
from kineflow.policies.running_episode import EpisodeResult

_COVERAGE_LEVELS = (0.5, 0.8, 0.9, SUCCESS_COVERAGE)
_TASK_NAMES = {"pusht": "PushT"}
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

    picture: UInt8[np.ndarray, "size size 3"]
    seed: int
    step: int


@dataclass(frozen=True)
class ReportPage:
    """Everything that the page shows."""

    name: str
    config: EvalConfig
    contract: PolicyContract
    result: EvalResult
    manifest: Mapping[str, Any]
    training: Sequence[Metric]
    run_config: str  # YAML of the training run; empty when there is none
    clips: Sequence[Clip]
    fans: Sequence[Fan]


def build_report(page: ReportPage) -> str:
    """The page as HTML text."""
    result = page.result
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{page.name} · Kineflow evaluation"),
        name=html.escape(page.name),
        task=html.escape(_TASK_NAMES[page.config.env]),
        subtitle=_subtitle(page),
        chips=_chips(page),
        headlines=_headlines(page),
        videos=_videos(page),
        fans=_fans(page),
        training=_training(page.training),
        coverage=_coverage(result),
        latency_chart=_latency_chart(result),
        latency=_latency_table(page),
        episode_count=str(len(result.episodes)),
        episodes="".join(_episode_row(e) for e in result.episodes),
        command=html.escape(f"kineflow eval RUN --episodes {page.config.episodes} --seed-start {page.config.seed_start}"),
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
    return html.escape(f"{len(page.result.episodes)} unseen starts · control at {number(rate)} Hz · {created} UTC")


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


def _headlines(page: ReportPage) -> str:
    result = page.result
    succeeded = sum(e.success for e in result.episodes)
    call = result.policy_call_ms
    reward, success, coverage = result.mean_max_reward, result.success_rate, result.mean_max_coverage
    return (
        _score_card("Mean max reward", f"{reward.value:.3f}", reward, "coverage / 0.95, at most 1")
        + _score_card("Success rate", _percent(success.value), success, f"{succeeded} of {len(result.episodes)} episodes")
        + _score_card("Mean best coverage", _percent(coverage.value), coverage, "of the goal, at its best moment")
        + f'<div class="card score"><h3>Policy call</h3><p class="big">{number(call.p50)}<small> ms</small></p>'
        f'<p class="range">p99 {number(call.p99)} ms</p>'
        f'<p class="hint">median of {call.n} calls of {page.config.batch} rows</p></div>'
    )


def _score_card(title: str, value: str, score: Estimate, hint: str) -> str:
    return (
        f'<div class="card score"><h3>{title}</h3><p class="big">{value}</p>{interval_bar(score.value, score.low, score.high)}'
        f'<p class="range">95 % interval <b>{score.low:.3f} – {score.high:.3f}</b></p>'
        f'<p class="hint">{html.escape(hint)}</p></div>'
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}<small> %</small>"


def _videos(page: ReportPage) -> str:
    if not page.clips:
        return '<p class="empty">No videos were asked for: <code>--videos 3</code> shows the best, median and worst episode.</p>'
    return "".join(_video(clip) for clip in page.clips)


def _video(clip: Clip) -> str:
    episode = clip.episode
    data = base64.b64encode(clip.path.read_bytes()).decode("ascii")
    label = html.escape(clip.label)
    return (
        '<figure class="card clip"><video controls autoplay loop muted playsinline preload="auto" tabindex="0" '
        f'aria-label="{label} episode" src="data:video/mp4;base64,{data}"></video>'
        f"{sparkline(episode.trajectory.coverage.tolist(), SUCCESS_COVERAGE)}"
        f'<figcaption><strong>{label}</strong>{_outcome(episode)}<span class="facts">'
        f"reward {episode.max_reward:.2f} · {episode.steps} steps · seed {episode.seed}</span></figcaption></figure>"
    )


def _outcome(episode: EpisodeResult) -> str:
    return '<span class="pill yes">success</span>' if episode.success else '<span class="pill no">time out</span>'


def _fans(page: ReportPage) -> str:
    return "".join(
        f'<figure class="card fan"><img alt="{page.config.fan_samples} chunks at step {fan.step}" src="{_png(fan.picture)}">'
        f'<figcaption><strong>step {fan.step}</strong><span class="facts">seed {fan.seed}</span></figcaption></figure>'
        for fan in page.fans
    )


def _png(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    buffer = io.BytesIO()
    # Few flat colours: a palette of 128 halves the file, and nobody sees it.
    Image.fromarray(picture).quantize(128).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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


def _coverage(result: EvalResult) -> str:
    values = [e.max_coverage for e in result.episodes]
    chart = histogram(values, "best coverage of the goal", SUCCESS_COVERAGE, "success")
    cells = ""
    for level in _COVERAGE_LEVELS:
        count = sum(value >= level for value in values)
        cells += f'<tr><th scope="row">at least {level:.2f}</th><td>{count}</td><td>{100 * count / len(values):.0f} %</td></tr>'
    head = "<thead><tr><th>best coverage</th><th>episodes</th><th>share</th></tr></thead>"
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


def _episode_row(e: EpisodeResult) -> str:
    bar = f'<span class="meter"><i style="width:{100 * e.max_reward:.1f}%"></i></span>'
    cells = [
        (str(e.seed), str(e.seed)),
        (str(int(e.success)), _outcome(e)),
        (f"{e.max_reward:.6f}", f"{bar}{e.max_reward:.3f}"),
        (f"{e.max_coverage:.6f}", f"{e.max_coverage:.3f}"),
        (f"{e.final_coverage:.6f}", f"{e.final_coverage:.3f}"),
        (str(e.steps), str(e.steps)),
        (str(e.clipped_actions), str(e.clipped_actions)),
    ]
    return "<tr>" + "".join(f'<td data-value="{value}">{text}</td>' for value, text in cells) + "</tr>"
