import io
from pathlib import Path

from rich.console import Console

from training.progress import LiveProgress, PlainProgress, Progress, make_progress

POINT = {
    "step": 50,
    "images_seen": 1600,
    "images_per_s": 800.0,
    "loss_discriminator": 1.25,
    "loss_generator": 0.75,
    "d_real": 0.55,
    "d_fake": 0.45,
}


def tell(progress: Progress) -> None:
    """What a loop would say of 50 steps."""
    progress.started(run=Path("runs/quick-1"), step=0, steps=150)
    progress.stepped(50)
    progress.logged(POINT)
    progress.warned("gradients vanish; try less")
    progress.wrote("sheet", Path("runs/quick-1/sheets/step-00000050.png"))
    progress.logged(POINT | {"step": 100, "fid": 0.1234})
    progress.finished()


def test_plain_lines_without_a_terminal() -> None:
    """Each line says step, speed, time left, both losses, and D on real and fake; then what was written."""
    stream = io.StringIO()
    progress = make_progress(stream)
    assert isinstance(progress, PlainProgress)
    tell(progress)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "step 50/150  800 images/s  eta 4 s  loss D 1.250 G 0.750  D(real) 0.55 D(fake) 0.45"
    assert lines[2] == "health: gradients vanish; try less"
    assert lines[4].endswith("D(fake) 0.45  FID 0.123")
    assert lines[3] == "sheet runs/quick-1/sheets/step-00000050.png"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_one_live_line() -> None:
    """The same numbers, with the sheet that was written last."""
    stream = io.StringIO()
    tell(LiveProgress(Console(file=stream, force_terminal=True, width=200)))
    shown = stream.getvalue()
    for text in (
        "quick-1",
        "50/150",
        "800 images/s",
        "loss D 1.250 G 0.750",
        "D(real) 0.55 D(fake) 0.45",
        "step-00000050.png",
        "health: gradients vanish; try less",
        "FID 0.123",
    ):
        assert text in shown


def test_a_rate_that_rounds_to_nothing_has_no_end_in_sight() -> None:
    """An image that takes half a minute is 0.0 images/s: a line all the same."""
    stream = io.StringIO()
    PlainProgress(stream).logged(POINT | {"images_per_s": 0.0})
    assert "0 images/s  eta unknown" in stream.getvalue()


def test_a_name_is_no_markup() -> None:
    """A run called like one of rich's tags is shown as it is called."""
    stream = io.StringIO()
    progress = LiveProgress(Console(file=stream, force_terminal=True, width=200))
    progress.started(run=Path("runs/[/x]"), step=0, steps=1)
    progress.wrote("sheet", Path("runs/[/x]/sheets/[red]1.png"))
    progress.finished()
    assert "runs/[/x]/sheets/[red]1.png" in stream.getvalue()
