"""Everything that is wrong with the annotations of a data set, found before anything else runs."""

from ovd_d2.data.validation.registered import validate_dataset, validate_file
from ovd_d2.data.validation.reports import Report
from ovd_d2.data.validation.table import DatasetUse, Source

__all__ = ["DatasetUse", "Report", "Source", "validate_dataset", "validate_file"]
