"""The composed policy: what it answers, what it shares with its parents, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kineflow.contracts import CameraSpec, ContractError, FeatureSpec, Horizons, Interface, KineflowError, Observation
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.contract import clocks, union_interface, views
from kineflow.policies.compose.operators import EqualDensity
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.compose.timeline import Timeline
from kineflow.policies.compose.weights import WeightKnot
from kineflow.policies.objectives import FlowMatching, Regression
from kineflow.policies.paths import VarianceExploding
from kineflow.policies.question import question
from tests.policies.compose.conftest import DIFFUSION, Make, ask, look
from tests.policies.conftest import ACTION, INTERFACE


def combine(*parents: ChunkPolicy, weights: tuple[float, ...] = (0.3, 0.7), **options) -> ComposedPolicy:
    names = tuple("abcd"[: len(parents)])
    return compose(parents, names, Composition(names, weights, **{"steps": 4, **options}))


@pytest.mark.parametrize("place", [0, 1])
def test_one_hot_is_the_parent_bit_for_bit(make: Make, observation: Observation, place: int) -> None:
    parents = (make(0, objective=FlowMatching(steps=4, solver="ddim")), make(1, objective=DIFFUSION))
    composed = combine(*parents, weights=(1.0 - place, float(place)))
    expected = parents[place].predict(observation, ask()).actions
    assert np.array_equal(composed.predict(observation, ask()).actions, expected)


def test_mixed_fields_are_the_weighed_ones_in_physical_units(make: Make, observation: Observation) -> None:
    """Flow and diffusion, absolute and relative actions, other units: one composed denoised chunk, checked by hand."""
    flow, diffusion = make(0), make(1, objective=DIFFUSION, relative_to=("x", "y"))
    composed = combine(flow, diffusion)
    asked = composed.question(observation, ask())
    own = [question(p, observation, ask()) for p in (flow, diffusion)]
    lam = torch.linspace(-2, 2, 5)
    alpha = torch.sigmoid(2 * lam).sqrt()[:, None, None]
    x = torch.randn(5, 8, 2, generator=torch.Generator().manual_seed(0))
    physical = (x / alpha) * asked.units.scale + asked.units.offset  # a + noise of std sigma / alpha * scale
    answers = []
    for one in own:
        ratio = (asked.units.scale / one.units.scale)[0, 0]
        level = lam - torch.log(ratio)
        seen = torch.sigmoid(2 * level).sqrt()[:, None, None] * one.units.normalise(physical)
        answers.append(one.units.restore(one.field(seen, level, one.condition)))
    got = asked.units.restore(asked.field(x, lam, asked.condition))
    torch.testing.assert_close(got, 0.3 * answers[0] + 0.7 * answers[1], rtol=1e-4, atol=1e-4)


def test_order_of_the_parents_does_not_matter(make: Make, observation: Observation) -> None:
    a, b, c = make(0), make(1, objective=DIFFUSION), make(2)
    one = combine(a, b, c, weights=(0.2, 0.3, 0.5)).predict(observation, ask()).actions
    other = combine(a, c, b, weights=(0.2, 0.5, 0.3)).predict(observation, ask()).actions
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_contract_is_the_union_and_policy_is_pure(make: Make, observation: Observation) -> None:
    composed = combine(make(0), make(1, objective=DIFFUSION))
    assert composed.contract.interface == INTERFACE
    assert composed.contract.horizons == Horizons(2, 8, 4)
    assert composed.contract.sampler.path == "CondOT() + SquaredCos(num_steps=100)"
    first, second = (composed.predict(observation, ask()).actions for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (5, 8, 2)
    row = Observation(observation.state[3:4], observation.stamp_s[3:4])
    alone = composed.predict(row, replace(ask(1), seeds=ask().seeds[3:4])).actions
    np.testing.assert_allclose(alone[0], first[3], rtol=1e-5, atol=1e-5)


def test_cameras_of_one_policy_join_the_state_of_another(make: Make) -> None:
    """State alone with camera alone: the union holds both, each policy sees its own, and one name has one meaning."""
    state = make(0).contract
    top = CameraSpec(96, 96, 10.0)
    images = replace(state, interface=Interface({}, state.interface.action, {"top": top}))
    timeline = Timeline.of(clocks("ab", (state, images)))
    union = union_interface("ab", (state, images), timeline)
    assert (dict(union.features), dict(union.cameras)) == (dict(state.interface.features), {"top": top})
    seen = views(union, (state, images), timeline)
    assert [(view.dimensions, view.cameras) for view in seen] == [((0, 1, 2), ()), ((), ("top",))]
    named = Interface({"extra": state.interface.features["state"]}, state.interface.action)
    extra = replace(state, interface=named, statistics={**state.statistics, "extra": state.statistics["state"]})
    timeline = Timeline.of(clocks("ab", (state, extra)))
    union = union_interface("ab", (state, extra), timeline)
    assert [*union.features] == ["state", "extra"]
    assert [view.dimensions for view in views(union, (state, extra), timeline)] == [(0, 1, 2), (3, 4, 5)]
    other = replace(images, interface=replace(images.interface, cameras={"top": replace(top, height=48)}))
    with pytest.raises(ContractError, match=r"(?s)'c' cannot be composed with 'b'.*top"):
        union_interface("abc", (state, images, other), Timeline.of(clocks("abc", (state, images, other))))


def test_different_horizons_share_the_first_steps(make: Make, observation: Observation) -> None:
    """Beyond the short policy's chunk the long one acts alone: with weight 1 for the short one, its own steps are its own."""
    long, short = make(0), make(1, horizons=Horizons(1, 4, 2))
    composed = combine(long, short)
    assert composed.contract.horizons == Horizons(2, 8, 2)
    assert composed.predict(observation, ask()).actions.shape == (5, 8, 2)
    alone = combine(long, short, weights=(1.0, 0.0)).predict(observation, ask()).actions
    expected = long.resampled("ddim", 4).predict(observation, ask()).actions
    assert np.array_equal(alone, expected)
    first, tail = combine(long, short, weights=(0.0, 1.0)), slice(4, 8)
    assert first.plan.active == (0, 1)
    assert not np.allclose(first.predict(observation, ask()).actions[:, :4], expected[:, :4])
    assert np.isfinite(first.predict(observation, ask()).actions[:, tail]).all()


def test_different_rates_compose_on_shared_stamps(make: Make) -> None:
    """10 Hz with 6 actions and 5 Hz with 4: ticks 0 to 6, the slow one on every second; its history is every second step."""
    fast, slow = make(0, horizons=Horizons(2, 6, 4)), make(1, rate_hz=5.0, horizons=Horizons(2, 4, 3))
    composed = combine(fast, slow)
    assert composed.contract.horizons == Horizons(3, 7, 4)
    assert composed.contract.interface.action.rate_hz == 10.0
    assert composed.contract.interface.features["state"].rate_hz == 10.0
    assert composed.plan.steps == ((0, 1, 2, 3, 4, 5), (0, 2, 4, 6))
    observation = look(3)
    answer = composed.predict(observation, ask())
    assert answer.step_s == pytest.approx(0.1)
    assert np.isfinite(answer.actions).all()
    seen = [view.of(observation).stamp_s[0].tolist() for view in composed.plan.views]
    np.testing.assert_allclose(seen, [[0.1, 0.2], [0.0, 0.2]])
    # The slow policy's steps between its ticks do not exist: with all the weight it still decides only the even ones.
    everything = combine(fast, slow, weights=(0.0, 1.0))
    assert everything.plan.active == (0, 1)


def test_a_chunk_ends_before_the_first_tick_on_which_nobody_acts(make: Make) -> None:
    """10 Hz with 6 actions and 5 Hz with 5: nobody acts at tick 7, but the slow policy still sees its tick 8."""
    fast, slow = make(0, horizons=Horizons(2, 6, 4)), make(1, rate_hz=5.0, horizons=Horizons(2, 5, 4))
    composed = combine(fast, slow)
    assert composed.contract.horizons == Horizons(3, 7, 4)
    assert (composed.plan.timeline.size, composed.plan.steps[1]) == (8, (0, 2, 4, 6, 7))
    assert composed.predict(look(3), ask()).actions.shape == (5, 7, 2)


def test_rates_without_common_stamps_are_refused(make: Make) -> None:
    with pytest.raises(ContractError, match=r"'b' runs at 4 Hz and 'a' at 10 Hz: not a whole multiple"):
        combine(make(0), make(1, rate_hz=4.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("x", "goal_y")}, r"action: names is \('goal_x', 'goal_y'\).*convert the data or retrain"),
        ({"units": ("mm", "mm")}, "action: units is"),
        ({"frame": "map"}, "action: frame is odom in the policy and map here"),
        ({"high": (1.0, 9.0)}, "action: high is"),
    ],
)
def test_other_action_spaces_are_refused(make: Make, change: dict, message: str) -> None:
    other = Interface(INTERFACE.features, FeatureSpec(replace(ACTION, **change), 10.0))
    with pytest.raises(ContractError, match=message) as error:
        combine(make(0), make(1, interface=other))
    assert "'b' cannot be composed with 'a'" in str(error.value)


def test_one_feature_name_with_two_meanings_is_refused(make: Make) -> None:
    state = INTERFACE.features["state"].vector
    other = Interface({"state": FeatureSpec(replace(state, frame="map"), 10.0)}, INTERFACE.action)
    with pytest.raises(ContractError, match="feature 'state': frame is odom in the policy and map here"):
        combine(make(0), make(1, interface=other))


def test_factors_per_step_are_refused_unless_flagged(make: Make, observation: Observation) -> None:
    """Relative chunks scaled per step grow along the horizon; absolute ones do not."""
    parents = make(0, action_scaling="gaussian"), make(1, action_scaling="gaussian", relative_to=("x", "y"))
    with pytest.raises(KineflowError, match=r"b: its normaliser and the first policy's differ.*isotropic.*--approximate"):
        combine(*parents)
    assert np.isfinite(combine(*parents, approximate=True).predict(observation, ask()).actions).all()


def test_policies_without_noise_levels_are_refused(make: Make) -> None:
    with pytest.raises(KineflowError, match="'b' is a Regression policy: it has no noise levels"):
        combine(make(0), make(1, objective=Regression()))


def test_or_of_trained_policies_is_refused(make: Make, observation: Observation) -> None:
    with pytest.raises(KineflowError, match=r"'a' has no density.*use --operator and"):
        combine(make(0), make(1), operator="or")


def test_and_takes_its_noise_from_the_operator(make: Make, observation: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[EqualDensity] = []
    draw = EqualDensity.draw
    monkeypatch.setattr(EqualDensity, "draw", lambda self: (drawn.append(self), draw(self))[1])
    combine(make(0), make(1), weights=(), operator="and", solver="ddpm").predict(observation, ask())
    assert drawn


def test_and_runs_and_needs_whole_chunks(make: Make, observation: Observation) -> None:
    composed = combine(make(0), make(1, objective=DIFFUSION), weights=(), operator="and", solver="ddpm")
    first = composed.predict(observation, ask()).actions
    assert np.isfinite(first).all()
    assert np.array_equal(first, composed.predict(observation, ask()).actions)
    with pytest.raises(KineflowError, match="act on different steps"):
        combine(make(0), make(1, horizons=Horizons(1, 4, 2)), weights=(), operator="and", solver="ddpm")


def test_a_start_that_is_not_noise_is_refused(make: Make) -> None:
    edm = FlowMatching(path=VarianceExploding(sigma_max=2.0), prediction="edm", loss_space="edm", steps=4)
    with pytest.raises(KineflowError, match="'b' knows no noise above lambda"):
        combine(make(0), make(1, objective=edm))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (0.5, 0.4)}, "sum to 0.9"),
        ({"weights": (0.2, 0.3, 0.5)}, "3 weights for 2 policies"),
        ({"weights": (), "schedule": (WeightKnot(0.0, (0.5, 0.6)),)}, "sum to 1.1"),
        ({"schedule": (WeightKnot(0.0, (0.5, 0.5)),)}, "exclude each other"),
        ({"operator": "and"}, "finds the weights by itself"),
        ({"operator": "and", "weights": ()}, "use --solver ddpm"),
        ({"steps": 101}, "at most 100, the levels of 'b'"),
        ({"execution": 9}, "execution"),
    ],
)
def test_bad_compositions_are_refused(make: Make, options: dict, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        combine(make(0), make(1, objective=DIFFUSION), **options)


def test_schedule_and_independent_noise_change_the_answer(make: Make, observation: Observation) -> None:
    parents = make(0), make(1, objective=DIFFUSION)
    constant = combine(*parents).predict(observation, ask()).actions
    flat = combine(*parents, weights=(), schedule=(WeightKnot(0.0, (0.3, 0.7)), WeightKnot(1.0, (0.3, 0.7))))
    np.testing.assert_allclose(flat.predict(observation, ask()).actions, constant, rtol=1e-5, atol=1e-5)
    sloped = combine(*parents, weights=(), schedule=(WeightKnot(0.0, (1.0, 0.0)), WeightKnot(1.0, (0.0, 1.0))))
    assert np.abs(sloped.predict(observation, ask()).actions - constant).max() > 1e-3
    apart = combine(*parents, noise="independent").predict(observation, ask()).actions
    assert np.abs(apart - constant).max() > 1e-3


def test_diffusion_reaches_the_solver(make: Make, observation: Observation) -> None:
    parents = make(0), make(1, objective=DIFFUSION)
    ode = combine(*parents).predict(observation, ask()).actions
    none, one, three = (combine(*parents, solver="sde", diffusion=k).predict(observation, ask()).actions for k in (0.0, 1.0, 3.0))
    np.testing.assert_allclose(none, ode, rtol=1e-5, atol=1e-5)
    assert min(np.abs(one - ode).max(), np.abs(three - one).max()) > 1e-3


def test_observations_that_do_not_fit_are_refused(make: Make) -> None:
    with pytest.raises(ContractError, match=r"state has shape \(5, 3, 3\), the composed policy needs \(5, 2, 3\)"):
        combine(make(0), make(1)).predict(look(3), ask())
