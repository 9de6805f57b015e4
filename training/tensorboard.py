"""The same numbers and sheets for TensorBoard, which is an extra: pip install 'ganserve[tensorboard]'."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ganserve.errors import ConfigError

FOLDER = "tensorboard"  # in the run


class TensorBoard:
    """Event files in a run's `tensorboard/`. A resumed run goes on from its step; what came after is hidden."""

    def __init__(self, run: Path, *, step: int) -> None:
        """Opens a new event file.

        Args:
            run: the run's directory.
            step: where it is now.

        Raises:
            ConfigError: the extra is not installed.
        """
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / FOLDER), purge_step=step + 1)

    def logged(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: each number, and each layer's gradient."""
        step = line["step"]
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, step)
        for player, norms in line["gradients"].items():
            for layer, norm in norms.items():
                self._writer.add_scalar(f"gradients/{player}/{layer}", norm, step)
        for symptom in line.get("health", ()):
            self._writer.add_text("health", f"{symptom['what']}; try {symptom['remedy']}", step)
        self._writer.flush()

    def wrote_sheet(self, sheet: Path, step: int) -> None:
        """A sample sheet is on the disk."""
        with Image.open(sheet) as image:
            pixels = np.asarray(image)
        self._writer.add_image("sheet", pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        with contextlib.suppress(OSError):  # the run itself has everything
            self._writer.close()


def check_installed() -> None:
    """Refuses to do without what was asked for.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        import tensorboard  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as err:
        raise ConfigError(
            "log.tensorboard is true, but TensorBoard is not installed", hint="pip install 'ganserve[tensorboard]'"
        ) from err
