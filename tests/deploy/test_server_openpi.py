"""`openpi-client` 0.1.2 as it is on the index, unchanged, against our server: its WebsocketClientPolicy connects and infers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from kineflow.contracts import SamplingRequest
from kineflow.deploy.messages import contract_from
from kineflow.policies.noise_seed import noise_seed
from tests.deploy.serving import TOKEN, Running, Toy, contract, observation, running

# Its client opens connections in the way that newer websockets advise against, and leaves them to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
FRAME = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class Recorder(Toy):
    """Keeps what it was asked."""

    def predict(self, observation: Any, request: Any) -> Any:
        self.asked = (observation, request)
        return super().predict(observation, request)


def connected(server: Running, token: str = TOKEN) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", server.port, api_key=token)


def moment(count: float, **others: Any) -> dict[str, Any]:
    return {"observation/state": np.array([count]), "observation/image": FRAME, "goal/point": np.full(3, 2.0), **others}


def test_it_connects_and_infers() -> None:
    toy = Recorder()
    with running(toy) as server:
        policy = connected(server)
        metadata = policy.get_server_metadata()
        assert metadata["policy"] == "policy"
        assert contract_from(metadata["contract"], "here") == contract()
        for k, count in enumerate((5.0, 6.0, 7.0)):
            said = policy.infer(moment(count))
            seed = noise_seed(0, k)
            expected = Toy().predict(observation(count, 2.0), SamplingRequest(np.array([seed], np.int64)))
            np.testing.assert_array_equal(said["actions"], expected.actions[0])
            assert said["actions"].shape == (8, 2)
            assert said["actions"].dtype == np.float32
            assert said["server_timing"]["infer_ms"] >= 0
            assert ("prev_total_ms" in said["server_timing"]) == (k > 0)
            # The policy's window is two moments long: the one before, at first the same.
            seen, _ = toy.asked
            assert seen.state[0, :, 0].tolist() == [max(count - 1, 5.0), count]
            np.testing.assert_array_equal(seen.images["front"][0, -1], FRAME)
        policy.infer(moment(50, reset=True))
        assert toy.asked[0].state[0, :, 0].tolist() == [50, 50]
        policy._ws.close()


@pytest.mark.parametrize(
    "named",
    [
        {"state": np.array([3.0]), "images": {"front": FRAME}},
        {"state": [3], "image": FRAME},
        {"count": np.array([3.0]), "front": FRAME.transpose(2, 0, 1)},
        {"observation/count": np.array([3], np.int64), "observation/front": FRAME},
        {"observation.state": np.array([3.0]), "observation.images.front": FRAME, "prompt": "ignored: it takes no words"},
    ],
)
def test_names_of_other_robots_are_matched_with_the_contract(named: dict[str, Any]) -> None:
    toy = Recorder()
    with running(toy) as server:
        policy = connected(server)
        assert policy.infer({**named, "goal/point": np.zeros(3)})["actions"][0, 0] == 3
        np.testing.assert_array_equal(toy.asked[0].images["front"][0, 0], FRAME)
        policy._ws.close()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"observation/state": np.zeros(2)}, "has 2 numbers, the policy needs 1"),
        ({"observation/state": np.array([np.nan])}, "is nan"),
        ({"observation/image": np.zeros((5, 6, 3), np.uint8)}, "resize it"),
        ({"observation/image": None}, "camera 'front': the policy needs it"),
        ({"goal/pose": np.zeros(7)}, "takes no goal 'pose'"),
        ({"observation/state": np.array([666.0])}, "the policy broke"),
    ],
)
def test_refusals_are_what_their_client_raises(wrong: dict[str, Any], why: str) -> None:
    """And the connection lives on, its window without the observation that was refused."""
    with running() as server:
        policy = connected(server)
        policy.infer(moment(1))
        with pytest.raises(RuntimeError, match=f"(?s)Error in inference server.*{why}"):
            policy.infer({**moment(1), **wrong})
        assert policy.infer(moment(4))["actions"][0, 0] == 4 + 2
        policy._ws.close()


def test_each_connection_has_its_own_window_and_needs_the_token() -> None:
    toy = Recorder()
    with running(toy) as server:
        first, second = connected(server), connected(server)
        first.infer(moment(1))
        second.infer(moment(100))
        first.infer(moment(2))
        assert toy.asked[0].state[0, :, 0].tolist() == [1, 2]
        second.infer(moment(101))
        assert toy.asked[0].state[0, :, 0].tolist() == [100, 101]
        for one in (first, second):
            one._ws.close()
        with pytest.raises(Exception, match="401"):
            connected(server, "another token")
