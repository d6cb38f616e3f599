"""From a model and images to masks: what `segmentation` needs is recorded here, and its masks come back as images."""
