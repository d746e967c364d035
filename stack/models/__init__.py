"""The local models behind an OpenAI-compatible address on loopback (`python -m stack.models`)."""
