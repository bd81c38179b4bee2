"""What an error of a decoder means: another format, an unsupported variant, a truncated, damaged or too large file."""

import io
import re
import struct

from PIL import Image, UnidentifiedImageError

from llava_jax.errors import DataError
from llava_jax.output.file_kind import wrong_content

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 33_000_000
STARTS = {"JPEG": rb"\xff\xd8\xff", "PNG": rb"\x89PNG", "WEBP": rb"RIFF....WEBP", "GIF": rb"GIF8", "BMP": rb"BM"}
OTHER_FORMATS = {  # how files of other formats start, within their first 1 KiB
    "SVG": rb"\s*<(svg|!DOCTYPE svg|(\?xml|!--).*<svg)\b",
    "TIFF or raw camera": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(avi[fs]|.{4,40}avif)",
    "HEIC": rb"....ftyp(hei[cxms]|hev[cxms]|mi[fa]f|m[is][fs]1)",
    "video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop": rb"8BPS",
    "icon": rb"\0\0[\x01\x02]\0|icns",
    "PNM": rb"P[1-7]\s",
    "QOI": rb"qoif",
    "DDS": rb"DDS ",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?R",
    "FITS": rb"SIMPLE  =",
    "DICOM": rb".{128}DICM",
    "base64 text": rb"data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR",
    "zip archive": rb"PK\x03\x04",
    "NumPy array": rb"\x93NUMPY",
}

REPAIR_HINT = "Replace the file, or remove the sample that names it."
CHAT_HINT = "Use another image."
UNSUPPORTED = re.compile(r"cannot handle|unsupported|unknown|not supported", re.IGNORECASE)
TRUNCATED = re.compile(r"truncated|incomplete|not enough (image )?data|buffer is not large enough", re.IGNORECASE)


def image_fault(fault: Exception, name: str, file: io.BufferedIOBase, hint: str = REPAIR_HINT) -> DataError:
    """Returns the DataError, starting with `name`, for what opening or decoding `file` raised. Fixed texts, because
    PIL's may contain memory addresses; only what it calls unsupported is quoted."""
    cannot = f"{name}: the image cannot be read"
    if isinstance(fault, Image.DecompressionBombError):
        return DataError(f"{name}: more than {MAX_PIXELS:,} pixels. Scale the image down.", "extreme size")
    if isinstance(fault, MemoryError):
        return DataError(f"{cannot}: too little memory is free. Use fewer threads or workers.", "unusable")
    if isinstance(fault, OSError) and fault.errno:
        return DataError(f"{cannot} ({fault.strerror}). Check the file's permissions and its disk.", "missing")
    file.seek(0)
    start = file.read(1024)
    known = next((form for form, pattern in STARTS.items() if re.match(pattern, start, re.DOTALL)), None)
    if isinstance(fault, UnidentifiedImageError):
        if known is None:
            return _other_format(name, start, hint)
        fault = _fault_of_header(known, file) or fault
    text = "unsupported chunk CgBI, of Apple's own PNGs" if start[12:16] == b"CgBI" else str(fault)
    if UNSUPPORTED.search(text):
        text = re.sub(r"\bat 0x[0-9a-f]+|[^ -~]", "", text)[:100]
        return DataError(
            f"{cannot}: a kind of {known or 'image'} that is not supported ({text}). Convert it.", "wrong type"
        )
    if TRUNCATED.search(text) or _ends_early(fault) or _is_cut_webp(start, file):
        return DataError(f"{cannot}: the file is truncated. Download or copy it again. {hint}", "damaged")
    return DataError(f"{cannot}: its data is damaged. {hint}", "damaged")


def _other_format(name: str, start: bytes, hint: str) -> DataError:
    supported = ", ".join(FORMATS)
    for form, pattern in OTHER_FORMATS.items():
        if re.match(pattern, start, re.DOTALL):
            message = f"{name}: {form}, not in a supported image format ({supported}). Convert it."
            return DataError(message, "wrong type")
    if clause := wrong_content(start):
        return DataError(f"{name} {clause}.", "wrong type" if start else "damaged")
    return DataError(f"{name}: not in a supported image format ({supported}). {hint}", "wrong type")


def _fault_of_header(known: str, file: io.BufferedIOBase) -> Exception | None:
    """Returns what the reader of a format raises; `Image.open` only reports that no format fits."""
    file.seek(0)
    try:
        Image.OPEN[known][0](file, "")
    except Exception as fault:
        return fault
    return None


def _ends_early(fault: BaseException) -> bool:
    ends = (EOFError, IndexError, struct.error)  # what PIL's readers raise at the end of the data
    return isinstance(fault, ends) or isinstance(fault.__cause__, ends)


def _is_cut_webp(start: bytes, file: io.BufferedIOBase) -> bool:
    size = file.seek(0, io.SEEK_END)
    return start.startswith(b"RIFF") and size < 8 + int.from_bytes(start[4:8], "little")
