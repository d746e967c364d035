"""The command `faas`: starts the platform, speaks to it, looks inside it."""

DEMO_TENANT = "demo"  # whom the commands speak for where nobody is named
