"""A Generate message as the parameters of a chat completion. Nothing of it may choose an address or a header."""

from __future__ import annotations

from typing import Any

from subjects.contract import Code, Fault, FieldError
from subjects.gateway import FilePart, Generate, ImagePart, Message, TextPart

DATA_URL = "data:"
PASSED_ON = ("temperature", "top_p", "max_tokens", "stop", "tools", "tool_choice", "response_format", "seed")


def parameters(message: Generate) -> dict[str, Any]:
    """OpenAI's parameters. Raises Fault(INVALID) for what this version cannot send."""
    if message.cache.mode != "off":
        raise _invalid("cache.mode", "must be off", "this version does not cache generations: leave cache.mode off")
    if message.prompt is not None:
        messages = [{"role": "user", "content": message.prompt}]
    else:
        messages = [_message(each, f"messages.{number}") for number, each in enumerate(message.messages)]
    for number, tool in enumerate(message.tools):
        if tool.get("type") != "function":
            raise _invalid(f"tools.{number}.type", "must be function", "only tools of type function can be sent")
    given = message.model_dump(include=set(PASSED_ON), exclude_none=True)
    return {"messages": messages, **{name: value for name, value in given.items() if value != []}}


def _message(message: Message, path: str) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role}
    if isinstance(message.content, str):
        sent["content"] = message.content
    else:
        sent["content"] = [_part(part, f"{path}.content.{n}") for n, part in enumerate(message.content)]
    if message.name is not None:
        sent["name"] = message.name
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return sent


def _part(part: TextPart | ImagePart | FilePart, path: str) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart) and part.url is not None and part.url.startswith(DATA_URL):
        return {"type": "image_url", "image_url": {"url": part.url}}
    raise _invalid(path, "must be text or an image as a data: URL", "this version sends no files and no addresses")


def _invalid(path: str, message: str, detail: str) -> Fault:
    return Fault(Code.INVALID, detail, errors=[FieldError(path=path, message=message)])
