"""jobs: the platform's own component."""
