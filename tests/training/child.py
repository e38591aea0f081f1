"""A process of its own for the tests: trains the tiny task in a folder and saves the final weights.

python child.py FOLDER [PAUSE]; PAUSE seconds a step leave time to kill it.
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

import torch

from offkey.training.loop import TrainingConfig, train

location = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
tiny = importlib.util.module_from_spec(location)
location.loader.exec_module(tiny)


class Told:
    """Prints every step, slowly."""

    def __init__(self, pause):
        self.pause = pause

    def start(self, what, total, done=0):
        self.say(f"start {done}")

    def step(self, done, note=""):
        self.say(f"step {done}")
        time.sleep(self.pause)

    def say(self, text):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    config = TrainingConfig(
        epochs=3, learning_rate=0.02, checkpoint_every_steps=2, accumulate=2, early_stop=5, keep="best", device="cpu"
    )
    task = tiny.TinyTask()
    history = train(
        task, tiny.tiny_batches, lambda _: tiny.tiny_batches(99, 2), config, folder, Told(float(sys.argv[2]))
    )
    rank = os.environ.get("RANK", "0")
    result = {"weights": task.state_dict(), "losses": [record.train["total"] for record in history.epochs]}
    result["resumed_at"] = -1 if history.resumed_at is None else history.resumed_at
    torch.save(result, folder / f"result-{rank}.pt")


if __name__ == "__main__":
    main()
