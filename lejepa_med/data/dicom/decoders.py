"""Which transfer syntaxes can really be read here: a tiny frame of each goes through the reader of this package.

A decoder that is installed may still fail (a library of another version, a missing system library), so each one decodes
16 x 16 pixels whose values are known. The frames were compressed once by GDCM and stand below in base 85.
"""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from lejepa_med.data.dicom.header_pass import read_frames
from lejepa_med.data.dicom.pixels import stored_values

Outcome = Literal["works", "fails", "wrong values"]

_BASELINE = (
    "|JeWA07C!)0RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaL3zyJ#f01yBW0Ra&J|HJ"
    "?v000360RaI40RaF200000000330|W&I2M7rY3;)CbwGaRT0Rsa91Oo*H1Oxy80et}i0{{dO1ri}KK?W01VFw~{6f%L4p$H>FvB4Em(eNZQV"
    "se5B3Kka_85$)fCnzZ@G&MFiI5|2)L`6nNNJ&alR8>}2SXo+QWMyV&XlZJ5bai%jczJq*goTEOh>41lla!T~mzbHFqNAjxrl+W>s<N}RwYIm"
    "oxw^u`#Kp$P$jQpm)6~`0*Vx(G;o{@u<>u$;>FV+F^Yr!h_xSnx|Jncu0RaF2KLGw={t|x6fAQ=8021%+f6FhYwSJ&{B>k5E0OQyGCEwit0G"
    "3}*YW)ECN&7AT0LQQVOTW4Q04%<q)%t<(llEKx0FPhzmw$8qS$#dL|Je"
)
_EXTENDED = (
    "|JeWA07C!)0RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaL3!2k;o01yBW0Ra&J|HJ"
    "?l0099200000000000000001XWP!~h%+000I900000000000000001FH$I7e1xbpP4_2mt{A06ze2V2%{3Q31GcYO8}%82}@NDwIHO92%<N)"
    "Qcbp;Yy_t8;1s}xHTb=0yt8sL<Zr(s;&)4|Je"
)
_LOSSLESS = (
    "|JeV-01FTR5C9MX0TBTI!~hlm0RaI30000000000000002M7@V+5iXv0RRC20L+YxjEszojEszojEszol(QovBO@atBO@atBO@atB`nCu$jH"
    "dZ$jHdZ$jHdZ$xAXaGBPqUGBPqUGBPqUGE&TpjEszojEszojEszojFht@BO@atBO@atBO@atBPA@z$jHdZ$jHdZ$jHdZ$jM7GGBPqUGBPqUG"
    "BPqUGBQ%kjEszojEszojEszojEt1CBO@atBO@atBO@atBO@g&$jHdZ$jHdZ$jHdZ$jHe{GBPqUGBPqUGBPqUGBPq!%#4hTjEszojEszojEsz"
    "wvm+xTBO@atBO@atBO@avEXc^n$jHdZ$jHdZ$jHdaOENMtGBPqUGBPqUGBPqUfB)G4"
)
_JPEG_LS = (
    "|JeWc01FTR5C9MX0TBTI_y7$7|Nj6I07C&306_oR00;pA00000raZ@(vmRpDb`5{M-R^e#U7p64Oo@$RSXKu6dAi(fwwo=6x@006twx(kqR?"
    "lvnWVy5D3VA_XOb}#h(jR|NDuGNua9p}D-o&P+11g_$;H9FxwWyatzj-Sv@^4_GO{tTFt9JLFDwN0#kHlSm6e5sb#-RVnzzL58M9`|lO`-!F"
    "kZcTctEvc#fsIdR;^N{N|iTG)F@D)LWJqlr%s(R&A`H{D58oeqKYV@X|}?tB$7!al1U_zNhI0|B7z7Yf(Rgj5QH{BQZbBU7{)P-V;z7JoaZ^"
    "tbDZZn&s+p6S<Z8u=Q+-E)&T$6"
)
_NEAR_LOSSLESS = (
    "|JeWc01FTR5C9MX0TBTI_y7$7|Nj6O08IfR06_oR00;pA00IC2r1E-sJv}WxT)A=O$B!KHQBh4%n>K8jvSi7NB%!h-NRS{vfd}7x_uf=6^Up"
    "f#uDaunIOA%Cn`yS2X_lF3mKkMClMFDz>@K_9_c_eOHO*^U*0HQ>7|iA|i(?kWt!rA@nx&~~QkJDDN>d<;%FL{+s>-a#Ra8|~MO9Q}GNPg?D"
    "k7syfYMDQl1U~YNo11AC6gc}mP;&_TMz=4cU{(q|Je"
)
_JPEG_2000 = (
    "|4;u>04V?f0000G0000G00000000000000G0000G0000000000009pH0sm3}3;+NC0RRI81ONg5TmTI~fQX2Yh=`Dgh>-te04e|hLvm$dbY)"
    "~9VtF7(L_<w4PjF>!N>D{dAa-SPb7^mGATlm9E-?R)015yA0001900IA#-}sPF2Z2{u+D*uwR$IUym?Q)C1po~8`1lJvW)#1`55O7#{K3E?7"
    "<a|%p96oiDM|0&zz5nB06ze*Hlc)YvVb@Le?6u&TM*n>gvO{3|Je"
)


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax, what people call it, and a compressed frame (empty: the plain pixels are written)."""

    uid: UID
    name: str
    stream: str = ""
    bits: int = 12
    tolerance: int = 0


SYNTAXES = (
    Syntax(ImplicitVRLittleEndian, "implicit little endian"),
    Syntax(ExplicitVRLittleEndian, "explicit little endian"),
    Syntax(ExplicitVRBigEndian, "explicit big endian"),
    Syntax(DeflatedExplicitVRLittleEndian, "deflated"),
    Syntax(RLELossless, "RLE"),
    Syntax(JPEGBaseline8Bit, "JPEG baseline 8-bit", _BASELINE, 8, 3),
    Syntax(JPEGExtended12Bit, "JPEG extended 12-bit", _EXTENDED, 12, 40),
    Syntax(JPEGLossless, "JPEG lossless", _LOSSLESS),
    Syntax(JPEGLosslessSV1, "JPEG lossless SV1", _LOSSLESS),
    Syntax(JPEGLSLossless, "JPEG-LS", _JPEG_LS),
    Syntax(JPEGLSNearLossless, "JPEG-LS near-lossless", _NEAR_LOSSLESS, 12, 2),
    Syntax(JPEG2000Lossless, "JPEG 2000 lossless", _JPEG_2000),
    Syntax(JPEG2000, "JPEG 2000", _JPEG_2000),
)


def try_decoders() -> dict[str, Outcome]:
    """What came of each transfer syntax, by its name. Raises OSError where no temporary file can be written."""
    with tempfile.TemporaryDirectory() as folder:
        return {syntax.name: _outcome(syntax, Path(folder) / f"{number}") for number, syntax in enumerate(SYNTAXES)}


def _outcome(syntax: Syntax, file: Path) -> Outcome:
    _write(syntax, file)
    try:
        (frame,) = read_frames(file)
        (found,) = stored_values([frame])
    except Exception:  # of a decoder: anything
        return "fails"
    off = np.abs(found.astype(np.int64) - pixels(syntax.bits)).max()
    return "works" if off <= syntax.tolerance else "wrong values"


def pixels(bits: int) -> NDArray[np.int64]:
    """The frame that every stream holds: a ramp, `[row, column]`."""
    row, column = np.mgrid[0:16, 0:16]
    ramp: NDArray[np.int64] = 150 * row + 100 * column if bits == 12 else 9 * row + 5 * column
    return ramp


def _write(syntax: Syntax, file: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.uid == RLELossless else syntax.uid
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.4"), UID("2.25.1")
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = UID("2.25.2")
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.Modality, dataset.ImageType = [1, 1], "MR", ["ORIGINAL", "PRIMARY"]
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 16 if syntax.bits > 8 else 8
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = syntax.bits, syntax.bits - 1, 0
    order = ">" if syntax.uid == ExplicitVRBigEndian else "<"
    plain = pixels(syntax.bits).astype(f"{order}u{dataset.BitsAllocated // 8}").tobytes()
    dataset.PixelData = encapsulate([base64.b85decode(syntax.stream)]) if syntax.stream else plain
    dataset["PixelData"].VR = "OB" if syntax.stream else "OW"
    if syntax.uid == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    dataset.save_as(file, enforce_file_format=True)
