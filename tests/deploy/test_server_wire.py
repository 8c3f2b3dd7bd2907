"""The codec: bytes of openpi-client's own packer, and what a stranger's bytes may not do."""

from __future__ import annotations

import pickle
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from kineflow.contracts import CommittedPrefix, SamplingRequest
from kineflow.deploy.messages import (
    Fields,
    contract_from,
    contract_text,
    message,
    observation_fields,
    observation_from,
    opened,
    request_fields,
    request_from,
)
from kineflow.deploy.wire import DTYPES, WireError, pack, unpack
from tests.deploy.serving import contract, observation

RNG = np.random.default_rng(0)
PLAIN = {"words": "go", "n": 3, "x": 0.5, "yes": True, "none": None, "list": [1, "a", 2.5], "inner": {"a": b"bytes"}}
ARRAYS = {
    name: (RNG.integers(0, 2, (2, 3)) if name == "|b1" else RNG.integers(0, 100, (2, 3))).astype(name) for name in sorted(DTYPES)
}
SHAPES = {"scalar": np.zeros(()), "empty": np.zeros((0, 3), np.float32), "turned": np.arange(12.0).reshape(3, 4).T}


@pytest.mark.parametrize("value", [PLAIN, ARRAYS, SHAPES, {"number": np.float32(1.5), "count": np.int64(7)}])
def test_bytes_are_those_of_openpi_client(value: dict[str, Any]) -> None:
    """Their packer, and both ways between theirs and ours."""
    theirs = msgpack_numpy.packb(value)
    assert pack(value) == theirs
    for read in (unpack(theirs), msgpack_numpy.unpackb(pack(value))):
        np.testing.assert_equal(read, msgpack_numpy.unpackb(theirs))
    for name, array in ARRAYS.items():
        assert unpack(pack(array)).dtype == np.dtype(name)


def test_big_endian_arrays_arrive_with_their_values() -> None:
    np.testing.assert_array_equal(unpack(pack(np.arange(3, dtype=">f4"))), [0, 1, 2])


def lying(**changes: Any) -> bytes:
    array = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({**array, **{name.encode(): value for name, value in changes.items()}})


class Evil:
    """What pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a stranger's code was run",)


REFUSED = {
    "object dtype, as msgpack-numpy pickles it": lying(dtype="|O", data=pickle.dumps(Evil()), shape=[1]),
    "msgpack-numpy's own mark of a pickle": msgpack.packb({b"nd": True, b"kind": b"O", b"data": pickle.dumps(Evil())}) + b"\0",
    "structured dtype": lying(dtype="f4,f4", shape=[1]),
    "text dtype": lying(dtype="<U2", shape=[1]),
    "date dtype": lying(dtype="<M8[s]", shape=[1]),
    "dtype of another size": lying(dtype="<f16", shape=[1], data=bytes(16)),
    "dtype that is a list": lying(dtype=["<f4"]),
    "fewer bytes than the shape": lying(shape=[3]),
    "more bytes than the shape": lying(shape=[1]),
    "lengths that overflow": lying(shape=[1 << 62, 4, 0 + 1 << 40]),
    "negative lengths": lying(shape=[-1, -2]),
    "shape of truths": lying(shape=[True, 2]),
    "no shape": msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4"}),
    "nine axes": lying(shape=[1] * 8 + [2]),
    "data that are text": lying(data="12345678"),
    "scalar of text": msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}),
    "extension": msgpack.packb(msgpack.ExtType(5, b"x")),
    "cut": msgpack_numpy.packb(PLAIN)[:-1],
    "two messages": msgpack_numpy.packb(1) + msgpack_numpy.packb(2),
    "nothing": b"",
    "a list that says it is long": b"\xdd\xff\xff\xff\xff",
    "bytes that say they are long": b"\xc6\xff\xff\xff\xff",
    "deep": b"\x91" * 100_000 + b"\xc0",
    "a flood of mappings": msgpack.packb([[{}] * 1000] * 1000),
    "a flood of members": msgpack.packb([[None] * 4000] * 100),
    "not text": b"\xa2\xff\xfe",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_strangers_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack(data)


@pytest.mark.parametrize("value", [np.array([Evil()]), np.array(["a"]), object(), np.zeros(1, "M8[s]"), {"a": {1, 2}}])
def test_objects_are_not_sent(value: Any) -> None:
    with pytest.raises(WireError):
        pack({"value": value})


def test_questions_arrive_as_they_were_asked() -> None:
    made = contract()
    for rows in (1, 3):
        seen = observation(4, 2.0, rows)
        again = observation_from(Fields(unpack(pack(observation_fields(seen))), "x"), 8)
        np.testing.assert_equal(vars(again), vars(seen))
    shape = (2, made.horizons.prediction, 2)
    prefix = CommittedPrefix(RNG.random(shape, np.float32), RNG.random(shape[:2], np.float32), 3, "guided")
    asked = SamplingRequest(np.array([5, 2**62], np.int64), 4, 1.5, prefix)
    again = request_from(Fields(unpack(pack(request_fields(asked))), "x"), 2, made, 100)
    assert again.prefix is not None
    np.testing.assert_equal({**vars(again), "prefix": vars(again.prefix)}, {**vars(asked), "prefix": vars(prefix)})


def test_rows_that_are_alike_are_sent_once() -> None:
    one = observation(4, 2.0)
    rows = {name: np.repeat(v, 16, axis=0) for name, v in (("state", one.state), ("stamp_s", one.stamp_s))}
    images, goal = ({n: np.repeat(v, 16, axis=0) for n, v in values.items()} for values in (one.images, one.goal))
    many = type(one)(rows["state"], rows["stamp_s"], images, goal, ("go",) * 16)
    data = pack(observation_fields(many))
    assert len(data) < len(pack(observation_fields(one))) + 20
    np.testing.assert_equal(vars(observation_from(Fields(unpack(data), "x"), 16)), vars(many))


def test_the_contract_arrives_whole() -> None:
    made = contract()
    assert contract_from(contract_text(made), "here") == made


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([], "mapping"),
        ({1: 2}, "names"),
        ({**message("act", 1), "kineflow": 2}, "version 2"),
        ({**message("act", 1), "kineflow": True}, "kineflow"),
        ({"kineflow": 1, "id": 3}, "'type' is missing"),
        ({**message("act", 1), "id": -1}, "id"),
    ],
)
def test_what_is_no_message_of_this_version(data: Any, why: str) -> None:
    with pytest.raises(WireError, match=why):
        opened(data)
