"""What must survive: processes killed at named points, at random, and by their own messages."""
