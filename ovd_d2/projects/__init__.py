"""Systems beside ViLD: `ovd_d2.projects.NAME` is the package in projects/*/NAME of a checkout.

A wheel has them as sub-packages; in a checkout, however it is put on the path, they are found here.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "projects"
__path__ += [str(folder) for folder in sorted(_CHECKOUT.glob("*")) if folder.is_dir()]
