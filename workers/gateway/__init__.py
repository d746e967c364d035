"""gateway: every model behind one door; the one place that imports litellm and holds provider keys."""
