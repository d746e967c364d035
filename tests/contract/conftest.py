"""The fixtures of the contract tests."""

from tests.contract.fixtures import bus, platform_settings, served, upstream

__all__ = ["bus", "platform_settings", "served", "upstream"]
