"""Pictures: slices, contact sheets of views, PCA of patch tokens, training curves. Nothing here opens a window."""
