"""rag: documents in, cited answers out."""
