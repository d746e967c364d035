"""cache: a tenant's key-value cache in Valkey."""
