"""Image data: from a name or a path to labelled `datasets.Dataset` splits and model-ready tensors."""
