"""What can be said: contracts as typed values. Pure models and constants; imports nothing of ours, does no I/O."""
