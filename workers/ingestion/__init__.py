"""Files in: validate, extract, index."""
