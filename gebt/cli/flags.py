"""Flags that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gebt.experiments.option_groups import RUN

Out = Annotated[Path | None, RUN, Parameter(name="--out")]
AsJson = Annotated[bool, RUN, Parameter(name="--json", negative="", show_default=False)]
Flag = Annotated[bool, RUN, Parameter(negative="", show_default=False)]
