"""How a message becomes bytes: msgpack (default), JSON, protobuf; header names; faults. It raises only INVALID."""

from codec.formats import CONTENT_TYPES, JSON, MSGPACK, PROTOBUF, negotiate
from codec.messages import decode, decode_plain, digest, encode, encode_plain
from codec.problem import Problem, fault_from, fault_reply, to_problem

__all__ = [
    "CONTENT_TYPES",
    "JSON",
    "MSGPACK",
    "PROTOBUF",
    "Problem",
    "decode",
    "decode_plain",
    "digest",
    "encode",
    "encode_plain",
    "fault_from",
    "fault_reply",
    "negotiate",
    "to_problem",
]
