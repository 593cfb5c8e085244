"""Images and annotations in COCO's format, checked on reading; a synthetic set."""
