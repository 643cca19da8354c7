"""Reading and writing clips. Only this package imports PyAV.

A source is a file, a folder of numbered pictures, or the bytes of a file. Frames come one at a time, as
they are displayed (rotated, R'G'B', straight alpha): uint8, or uint16 over the whole range above 8 bits,
with their times in seconds since the first frame.

    media     properties of a clip: VideoInfo, colours, integers and floats, orientation (no PyAV)
    whole     whether a Matroska or GIF file is whole (no PyAV)
    pictures  folders of pictures, text chunks in PNG files (no PyAV)
    source    opening and probing          reader  frames from any frame number on
    pixels    conversion of colours        sound   copied, decoded, encoded
    formats   what can be written, how     writer  muxer (files), gif, folder (pictures)
    lossless  bit-exact chunks for the frame cache
"""

from .formats import codecs, containers
from .lossless import read_lossless, write_lossless
from .media import ColorTags, VideoInfo, from_float, to_float
from .reader import Reader
from .sound import read_audio
from .source import Source, probe
from .writer import Writer

__all__ = [
    "ColorTags",
    "Reader",
    "Source",
    "VideoInfo",
    "Writer",
    "codecs",
    "containers",
    "from_float",
    "probe",
    "read_audio",
    "read_lossless",
    "to_float",
    "write_lossless",
]
