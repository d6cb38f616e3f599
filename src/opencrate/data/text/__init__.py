"""Text data: from a path to documents, tokens on disk, and blocks that a model trains on."""
