"""Synthetic scans: MRI heads and CT bodies with labels, in memory or as a hospital archive on disk; no torch."""

from lejepa_med.data.synthetic.head import (
    Scan,
    Subject,
    draw_scan,
    draw_subject,
    head_phantom,
    tissue_fractions,
)

__all__ = ["Scan", "Subject", "draw_scan", "draw_subject", "head_phantom", "tissue_fractions"]
