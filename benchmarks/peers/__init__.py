"""What we are measured against. Each runs in a process of its own."""
