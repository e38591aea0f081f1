"""What the commands show while they work."""

import io

from rich.console import Console

from offkey.cli.output import Bars
from offkey.progress import Progress


def test_the_bar_shows_steps_and_loss() -> None:
    text = io.StringIO()
    with Bars(Console(file=text, force_terminal=True, width=120)) as bar:
        progress: Progress = bar
        progress.start("training", 18)
        progress.say("[not markup]")
        for step in range(1, 19):
            progress.step(step, f"epoch 2/2, loss {1 / step:.4f}")
    shown = text.getvalue()
    assert "18/18" in shown
    assert "epoch 2/2, loss 0.0556" in shown
    assert "[not markup]" in shown


def test_without_a_terminal_each_stage_is_one_line_and_its_end(capsys) -> None:
    with Bars() as bar:
        bar.start("training", 3)
        for step in range(1, 4):
            bar.step(step, f"loss {step}")
    assert capsys.readouterr().err == "training …\ntraining: 3/3 loss 3\n"
