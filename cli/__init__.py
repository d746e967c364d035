"""The command `faas`: starts the platform, speaks to it, looks inside it."""
