"""DICOM files compressed by GDCM, which encodes what pydicom's plugins only decode."""

from __future__ import annotations

from pathlib import Path

import gdcm
from dicom_factory import write
from pydicom.dataset import Dataset


def transcoded(folder: Path, dataset: Dataset, syntax: gdcm.TransferSyntax, lossy: bool = False) -> Path:
    """The file again, compressed by GDCM."""
    (path,) = write(folder, [dataset])
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    codec = None
    if lossy:
        codec = gdcm.JPEGLSCodec() if syntax == gdcm.TransferSyntax.JPEGLSNearLossless else gdcm.JPEGCodec()
        codec.SetLossless(False)
        if syntax == gdcm.TransferSyntax.JPEGLSNearLossless:
            codec.SetLossyError(2)
        else:
            codec.SetQuality(100)
        change.SetUserCodec(codec)
    assert change.Change()
    writer = gdcm.ImageWriter()
    target = folder / "compressed"
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target
