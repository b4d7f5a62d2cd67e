"""Real images: folders, archives, preprocessing, sampling, and calibration batches of any origin."""

from bitsplit.data.archive import JpegArchive, write_archive
from bitsplit.data.batches import Batches, as_batches, fingerprint
from bitsplit.data.folder import ImageFolder
from bitsplit.data.preprocessing import Preprocessing, for_timm, for_torchvision
from bitsplit.data.sampling import Sample, sample

__all__ = [
    "Batches",
    "ImageFolder",
    "JpegArchive",
    "Preprocessing",
    "Sample",
    "as_batches",
    "fingerprint",
    "for_timm",
    "for_torchvision",
    "sample",
    "write_archive",
]
