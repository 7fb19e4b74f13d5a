"""Synthetic scans: MRI heads and CT bodies with labels, in memory or as a hospital archive on disk; no torch."""

from lejepa_med.data.synthetic.archive import ArchiveSummary, write_archive
from lejepa_med.data.synthetic.body import Body, body_phantom, draw_body
from lejepa_med.data.synthetic.dicom_writer import (
    SeriesHeader,
    write_dose_report,
    write_secondary_capture,
    write_series,
)
from lejepa_med.data.synthetic.head import (
    Scan,
    Subject,
    draw_scan,
    draw_subject,
    head_ct,
    head_phantom,
    tissue_fractions,
)

__all__ = [
    "ArchiveSummary",
    "Body",
    "Scan",
    "SeriesHeader",
    "Subject",
    "body_phantom",
    "draw_body",
    "draw_scan",
    "draw_subject",
    "head_ct",
    "head_phantom",
    "tissue_fractions",
    "write_archive",
    "write_dose_report",
    "write_secondary_capture",
    "write_series",
]
