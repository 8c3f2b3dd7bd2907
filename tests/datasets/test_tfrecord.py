"""TFRecord framing and the protobuf reader, held against tensorboard's writer and Google's protobuf; no bytes crash them."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.datasets.importers.tfrecord import (
    WireError,
    find_records,
    masked_crc32c,
    parse_example,
    read_example,
    read_record,
    write_records,
)


def example_class() -> Any:
    """tf.train.Example as Google's protobuf knows it, described by hand so that TensorFlow is not needed."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="kineflow_test_example.proto", package="kft", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> Any:
        added = file.message_type.add(name=name)
        for field, number, kind, of, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added.field.add(name=field, number=number, type=kind, label=label, **({"type_name": of} if of else {}))
        return added

    message("BytesList", ("value", 1, kinds.TYPE_BYTES, "", True))
    message("FloatList", ("value", 1, kinds.TYPE_FLOAT, "", True))
    message("Int64List", ("value", 1, kinds.TYPE_INT64, "", True))
    lists = [("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List")]
    message("Feature", *[(name, number, kinds.TYPE_MESSAGE, f".kft.{of}", False) for name, number, of in lists])
    features = message("Features", ("feature", 1, kinds.TYPE_MESSAGE, ".kft.Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL, type_name=".kft.Feature")
    message("Example", ("features", 1, kinds.TYPE_MESSAGE, ".kft.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kft.Example"))


Example = example_class()


def encoded(**features: Any) -> bytes:
    """Lists of bytes, floats or ints to an Example by Google's protobuf; `a__b` stands for a/b."""
    message = Example()
    for name, values in features.items():
        feature = message.features.feature[name.replace("__", "/")]
        first = next(iter(values), 0)
        if isinstance(first, bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(first, float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(int(v) for v in values)
    return bytes(message.SerializeToString())


FEATURES = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        st.lists(st.binary(max_size=9), min_size=1, max_size=4),
        st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    ),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(FEATURES)
def test_every_example_is_read_as_protobuf_reads_it(features: dict[str, list[Any]]) -> None:
    message = Example()
    for name, values in features.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(message.features.feature[name], kind).value.extend(values)
    found = parse_example(message.SerializeToString())
    assert found.keys() == features.keys()
    for name, values in features.items():
        if isinstance(values[0], bytes):
            assert found[name] == values
        else:
            np.testing.assert_array_equal(found[name], np.array(values, np.float32 if isinstance(values[0], float) else np.int64))


def test_lists_that_are_not_packed_are_read_too() -> None:
    floats = b"".join(b"\x0d" + struct.pack("<f", value) for value in (1.5, -2.0))  # field 1, fixed 32 bits
    ints = b"\x08\x05\x08\xac\x02"  # field 1, varint, twice: 5 and 300
    for kind, data, expected in ((2, floats, [1.5, -2.0]), (3, ints, [5, 300])):
        feature = bytes([kind << 3 | 2, len(data)]) + data
        entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
        features = b"\x0a" + bytes([len(entry)]) + entry
        np.testing.assert_array_equal(parse_example(b"\x0a" + bytes([len(features)]) + features)["x"], expected)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_an_example_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert all(isinstance(value, (np.ndarray, list)) for value in parse_example(data).values())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_gives_an_example_or_a_wire_error(data: st.DataObject) -> None:
    good = bytearray(encoded(a=[b"xy", b""], b=[1.0, 2.0], c=[-1, 300]))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        parse_example(bytes(good[: data.draw(st.integers(0, len(good)))]))


def test_no_part_of_an_example_passes_for_the_whole() -> None:
    good = encoded(a=[b"xy", b""], b=[1.0, 2.0], c=[-1, 300])
    for size in range(1, len(good)):
        with pytest.raises(WireError):
            parse_example(good[:size])


def test_tensorboard_writes_the_same_framing(tmp_path: Path) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    payloads = [b"", b"a", bytes(range(256)) * 40]
    with open(tmp_path / "theirs", "wb") as file:
        writer = RecordWriter(file)
        for payload in payloads:
            writer.write(payload)
        writer.flush()
        data = (tmp_path / "theirs").read_bytes()
    write_records(tmp_path / "ours", payloads)
    assert (tmp_path / "ours").read_bytes() == data
    assert [read_record(record) for record in find_records(tmp_path / "theirs")] == payloads


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.tfrecord"
    write_records(file, [encoded(a=[1, 2, 3]), b"second"])
    good = file.read_bytes()
    for bit in range(0, len(good) * 8, 3):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises(KineflowError, match=r"a.tfrecord, record [01]: .*copy or download it again"):
            _ = [read_record(record) for record in find_records(file)]


def test_every_truncation_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.tfrecord"
    write_records(file, [b"first", b"second"])
    good = file.read_bytes()
    for size in range(1, len(good)):
        file.write_bytes(good[:size])
        if size == 12 + 5 + 4:
            assert len(find_records(file)) == 1
            continue
        with pytest.raises(KineflowError, match=r"a.tfrecord, record [01]: "):
            find_records(file)


def test_a_record_that_is_no_example_is_named(tmp_path: Path) -> None:
    write_records(tmp_path / "a.tfrecord", [b"", b"\xff\xff"])
    records = find_records(tmp_path / "a.tfrecord")
    assert read_example(records[0]) == {}
    with pytest.raises(KineflowError, match=r"a.tfrecord, record 1: it is not a tf.train.Example"):
        read_example(records[1])


def test_the_mask_is_the_published_one() -> None:
    # crc32c of 32 zero bytes is 8a9136aa (RFC 3720); masked by hand.
    assert masked_crc32c(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF
