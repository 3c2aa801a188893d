"""Writes loss_curves.json: the sum of the losses of each of the first 20 steps of every recipe that ships, made small.

    PYTHONPATH=tests python tests/golden/make_loss_curves.py

To be run again only after a change that is meant to change how networks train. In float32, on one thread.
"""

import json
import tempfile
from pathlib import Path

import torch
from training_faces import GOLDEN, RECIPES, small_recipe

from unmask.train.config import Recipe
from unmask.train.loop import Steps
from unmask.train.registry import trainer_of


def loss_curve(recipe: Recipe) -> list[float]:
    """The sum of all losses, discriminators' included, at each step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = trainer_of(recipe)
        steps = Steps(recipe, 0, trainer.batch)
        return [sum(trainer.step(phase, step, batch).values()) for phase, step, batch in steps]
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RECIPES:
            recipe = small_recipe(name, Path(folder) / "data", Path(folder) / "runs" / name)
            curves[name] = [round(value, 5) for value in loss_curve(recipe)]
            print(name, curves[name][0], curves[name][-1])
    (GOLDEN / "loss_curves.json").write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
