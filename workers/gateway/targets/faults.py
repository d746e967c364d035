"""A provider's failure as a Fault. Its own text is never forwarded: it may hold keys, prompts, others' data."""

from __future__ import annotations

from subjects.contract import Code, Fault

TIMEOUT_NAMES = frozenset({"Timeout", "APITimeoutError"})
RATE_LIMIT_HINT_S = 2.0  # at least: the client takes 1 s for "not delivered" and would ask again at once
MAX_RETRY_AFTER_S = 3600.0


def as_fault(error: Exception, model: str) -> Fault:
    """The Fault for what litellm raised, told from its class name and status alone."""
    error = _unwrapped(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status_code", None)
    if isinstance(error, TimeoutError) or names & TIMEOUT_NAMES or status in (408, 504):
        return Fault(Code.TIMEOUT, f"{model} did not answer in time")
    if "ContextWindowExceededError" in names:
        return Fault(Code.INVALID, f"the prompt does not fit into the context of {model}: shorten it")
    if "ContentPolicyViolationError" in names:
        return Fault(Code.INVALID, f"the content policy of {model}'s provider refused the request")
    if "APIConnectionError" in names:
        return Fault(Code.UPSTREAM, f"the provider of {model} could not be reached, or broke off")
    match status:
        case 429:
            return Fault(
                Code.EXHAUSTED,
                f"the provider of {model} limits its rate: ask later",
                retry_after_s=_retry_after_s(error),
            )
        case 401 | 403:
            return Fault(Code.UPSTREAM, f"the provider refused the key for {model}: check it where the gateway runs")
        case 404:
            return Fault(Code.NOT_FOUND, f"the provider does not know {model}: check its name")
        case 400 | 413 | 422:
            return Fault(Code.INVALID, f"the provider of {model} refused the request as invalid")
    return Fault(Code.UPSTREAM, f"the provider of {model} failed")


def _unwrapped(error: Exception) -> Exception:
    """What stands behind litellm's wrapper for failures in mid-stream."""
    original = getattr(error, "original_exception", None)
    return original if isinstance(original, Exception) else error


def _retry_after_s(error: Exception) -> float:
    headers = getattr(error, "litellm_response_headers", None) or {}
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:  # absent, or a date
        return RATE_LIMIT_HINT_S
    return min(max(seconds, RATE_LIMIT_HINT_S), MAX_RETRY_AFTER_S)
