"""The index of an archive: what is in each file, one row per volume, the account that closes."""
