"""The data sets of the objectives, as tensors on the device that trains.

:func:`load` is the one place: it finds the files (or downloads them), splits them the same way
every time, and keeps them on the device, so that a study of a thousand trials reads them once.
"""

from objectives.data.files import CorruptDataError
from objectives.data.files import DataNotFoundError
from objectives.data.load import Data
from objectives.data.load import load
from objectives.data.load import NAMES


__all__ = ["NAMES", "CorruptDataError", "Data", "DataNotFoundError", "load"]
