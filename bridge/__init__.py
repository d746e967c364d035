"""HTTP to NATS: routes made from the registry, tokens, limits, event streams, probes. No state, no component's rule."""

from bridge.server import serve

__all__ = ["serve"]
