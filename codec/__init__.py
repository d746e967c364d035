"""How a message becomes bytes: msgpack (default), JSON, header names, faults. Only Fault(INVALID) comes out of it."""

from codec.formats import JSON, MSGPACK, negotiate
from codec.messages import decode, decode_plain, digest, encode, encode_plain
from codec.problem import Problem, fault_from, fault_reply, to_problem

__all__ = [
    "JSON",
    "MSGPACK",
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
