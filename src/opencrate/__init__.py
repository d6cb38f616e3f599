"""OpenCRATE: white-box transformers."""
