"""Where an answer may come from: the local models, and the providers behind litellm."""
