"""Images: sources, decoding, augmentation, tensors."""
