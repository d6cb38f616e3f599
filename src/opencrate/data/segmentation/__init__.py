"""Images with true masks: COCO, DAVIS, VOC, or a folder of masks; read from a folder or a zip file, one at a time."""
