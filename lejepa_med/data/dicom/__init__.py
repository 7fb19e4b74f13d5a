"""DICOM: headers to frames, frames to stacks, stacks to volumes; no function here knows an index."""
