"""How well a model does: classification, reconstruction, language, probes."""
