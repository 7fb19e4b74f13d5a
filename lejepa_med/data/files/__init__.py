"""Files as they lie on a disk: found, opened in place (also inside zip and tar), NIfTI and images read."""
