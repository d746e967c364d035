"""What every process stands on: settings, logs, identity, the connection, the typed client, streams, output, probes."""
