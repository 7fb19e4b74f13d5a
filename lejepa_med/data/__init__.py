"""From files to arrays: the archive index, the readers, preprocessing, the cache, and batches for training."""
