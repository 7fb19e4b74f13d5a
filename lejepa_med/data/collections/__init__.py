"""Published layouts of images, masks and labels, read where they lie, without an index. Nothing is downloaded."""
