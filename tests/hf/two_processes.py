"""`torchrun two_processes.py FOLDER`: one update under each attack from two gloo processes, half of the batch each."""

import runpy
import sys
from pathlib import Path

import torch

tests = runpy.run_path(str(Path(__file__).with_name("test_adversarial.py")))


def main(folder: Path) -> None:
    results = {}
    for case, (attack, options) in tests["TOGETHER"].items():
        made = tests["update_of"](folder, attack, per_device_train_batch_size=2, ddp_backend="gloo", **options)
        results[case] = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    if made.args.process_index == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
