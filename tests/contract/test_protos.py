"""The .proto files as protoc reads them: the same messages as ours, field by field and byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc  # type: ignore[import-untyped]

import codec
from codec import fieldlock, protos
from codec.shapes import Map, Message, Repeated, Scalar, message_of
from subjects.contract import AnyCall
from tests.contract.examples import CALLS, World, example


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pool.DescriptorPool:
    """What protoc makes of the committed files."""
    made = tmp_path_factory.mktemp("protos") / "all"
    files = sorted(path.name for path in protos.COMMITTED.glob("*.proto"))
    assert protoc.main(["protoc", f"-I{protos.COMMITTED}", f"--descriptor_set_out={made}", *files]) == 0
    found = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(Path(made).read_bytes()).file:
        found.AddSerializedFile(file.SerializeToString())
    return found


def of(field: Any) -> str:
    return str(descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)).removeprefix("TYPE_").lower()


def told(form: Scalar | Message) -> str:
    return protos.full_name(form) if isinstance(form, Message) else form.type


def test_protoc_finds_every_field_where_we_do(pool: descriptor_pool.DescriptorPool) -> None:
    for message in protos.messages().values():
        theirs = pool.FindMessageTypeByName(protos.full_name(message)).fields_by_name
        numbers = fieldlock.numbers(message, fieldlock.committed())
        assert {name: field.number for name, field in theirs.items()} == numbers
        for field in message.fields:
            found: Any = theirs[field.name]
            form = field.form
            if isinstance(form, Map):
                assert found.message_type.GetOptions().map_entry
                found, form = found.message_type.fields_by_name["value"], form.value
            elif isinstance(form, Repeated):
                assert found.is_repeated
                form = form.item
            else:
                assert found.has_presence, f"{message.name}.{field.name}: absent is not empty"
            assert (found.message_type.full_name if found.message_type else of(found)) == told(form)


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_what_we_write_they_read_and_write_again(call: AnyCall, pool: descriptor_pool.DescriptorPool) -> None:
    message = codec.decode(codec.encode_plain(example(call, World("t")), codec.JSON), call.input, codec.JSON)
    model: Any = call.input
    theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName(protos.full_name(message_of(model))))
    again = theirs.FromString(codec.encode(message, codec.PROTOBUF)).SerializeToString()
    read = codec.decode(again, call.input, codec.PROTOBUF)
    assert read == message
    assert codec.digest(read) == codec.digest(codec.decode(codec.encode(message), call.input))
