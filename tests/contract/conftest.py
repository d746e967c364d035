"""The fixtures of the contract tests."""

from tests.contract.fixtures import bridge_url, bus, platform_settings, served, upstream

__all__ = ["bridge_url", "bus", "platform_settings", "served", "upstream"]
