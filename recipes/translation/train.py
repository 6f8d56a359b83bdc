"""One training: which command on which machine, with the effective batch of the recipe whatever the number of GPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from . import commands
from .languages import UNSPACED, base
from .recipe import Recipe, divisors

NAME = "train"  # of the configuration in a run's conf/
STOP_BY = ("bleu", "loss")  # what --patience looks at


@dataclass(frozen=True)
class Machine:
    """Where a training runs. The result does not depend on it, but for rounding and the random numbers of dropout.

    Args:
        cpu: leave the GPUs alone.
        processes: training processes on each node, one GPU each; None: one per GPU, as many as can share a batch.
        nodes: machines, which see the folder of the run under one path.
        rendezvous: HOST:PORT of the first node, where several meet.
        launcher: a command that runs what follows it once on every node, with PET_NODE_RANK set: 0, 1, … None: the
            user starts the other nodes.
    """

    cpu: bool = False
    processes: int | None = None
    nodes: int = 1
    rendezvous: str | None = None
    launcher: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("--nodes", self.nodes), ("--gpus", self.processes)):
            if value is not None and value < 1:
                raise RecipeError(f"{name} {value}: must be at least 1")
        if self.nodes > 1 and not (self.rendezvous and self.rendezvous.rpartition(":")[2].isdecimal()):
            raise RecipeError(
                f"--nodes {self.nodes}: needs --rendezvous HOST:PORT, an address of the first node that all others "
                f"reach, such as node1:29500 (got {self.rendezvous})"
            )

    def processes_for(self, recipe: Recipe) -> int:
        """Processes on each node.

        Raises:
            RecipeError: more GPUs than there are, or they cannot share the batch equally.
        """
        gpus = 0 if self.cpu else count_gpus()
        if self.processes is None:
            batches = recipe.batch_tokens // recipe.max_tokens
            fitting = [n for n in divisors(batches) if n % self.nodes == 0 and n <= self.nodes * max(gpus, 1)]
            processes = max(fitting, default=self.nodes) // self.nodes
        else:
            processes = self.processes
            if not self.cpu and processes > max(gpus, 1):
                raise RecipeError(
                    f"--gpus {processes}: this machine has {gpus}; ask for fewer, or train on the CPU: "
                    f"--cpu --processes {processes}"
                )
        recipe.update_freq(processes * self.nodes)
        return processes


def count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def stopping(recipe: Recipe, patience: int | None, metric: str) -> dict[str, Any]:
    """fairseq's options for stopping early: {"group.name": value}.

    Validation translates with the recipe's own beam search. The best checkpoints are kept, as many as are averaged:
    the newest are, by what early stopping is, worse than the best.

    Raises:
        RecipeError: a patience that is no number of validations, or a metric without one.
    """
    if patience is None:
        raise RecipeError(f"--stop-by {metric}: says what --patience looks at; give --patience N too")
    if patience < 1:
        raise RecipeError(f"--patience {patience}: must be at least 1 validation")
    options: dict[str, Any] = {
        "checkpoint.patience": patience,
        "checkpoint.best_checkpoint_metric": metric,
        "checkpoint.maximize_best_checkpoint_metric": metric == "bleu",
        "checkpoint.keep_best_checkpoints": recipe.average if recipe.average > 1 else -1,
    }
    if metric == "loss":
        return options
    text = recipe.text
    options |= {"task.eval_bleu": True, "task.eval_bleu_args": json.dumps(recipe.tree["generation"])}
    if base(text.target) in UNSPACED:  # words between spaces mean nothing there, so pieces are counted
        return {**options, "task.eval_tokenized_bleu": True}
    options["task.eval_bleu_remove_bpe"] = "sentencepiece" if text.subword == "sentencepiece" else "@@ "
    if text.tokenizer == "moses":
        languages = {"source_lang": text.source, "target_lang": text.target}
        options |= {"task.eval_bleu_detok": "moses", "task.eval_bleu_detok_args": json.dumps(languages)}
    return options


def check_tensorboard() -> None:
    """
    Raises:
        RecipeError: neither package is there, of which fairseq says one line in its log and goes on without.
    """
    if not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise RecipeError("--tensorboard: needs a package that writes its files; pip install tensorboardX")


def configuration(
    recipe: Recipe,
    machine: Machine,
    data_bin: Path,
    checkpoints: Path,
    initial: Path | None = None,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """The recipe's yaml with its paths and its machine filled in.

    Args:
        initial: a checkpoint whose parameters a training begins with that has no checkpoint of its own yet.
        tensorboard: where its figures go, too.
    """
    per_node = machine.processes_for(recipe)
    world = per_node * machine.nodes
    on_cpu = machine.cpu or not count_gpus()
    if on_cpu and recipe.precision == "fp16":
        raise RecipeError("--precision fp16: needs a GPU; use bf16 or fp32 on the CPU")
    tree = {group: dict(values) if isinstance(values, dict) else values for group, values in recipe.tree.items()}
    tree["task"]["data"] = str(data_bin)
    tree["common"] |= {"user_dir": str(commands.USER_DIR), "cpu": on_cpu}
    if recipe.precision != "fp32":
        tree["common"][recipe.precision] = True
    tree["checkpoint"]["save_dir"] = str(checkpoints)
    if initial:
        tree["checkpoint"]["finetune_from_model"] = str(initial)
    if tensorboard:
        tree["common"]["tensorboard_logdir"] = str(tensorboard)
    tree["optimization"]["update_freq"] = [recipe.update_freq(world)]
    tree["distributed_training"]["distributed_world_size"] = world
    if on_cpu:
        tree["dataset"]["num_workers"] = 0
    if on_cpu and world > 1:  # fairseq finds torchrun's processes by itself only on GPUs
        tree["distributed_training"] |= {
            "distributed_rank": "${oc.env:RANK}",
            "distributed_init_method": "env://",
            "distributed_backend": "gloo",
            "ddp_backend": "legacy_ddp",
            "distributed_no_spawn": True,
        }
    return tree


def command(recipe: Recipe, machine: Machine, conf: Path) -> list[str]:
    """fairseq-hydra-train on the configuration in `conf`; under torchrun for more than one process."""
    train = ["fairseq_cli.hydra_train", "--config-dir", str(conf), "--config-name", NAME]
    per_node = machine.processes_for(recipe)
    if per_node * machine.nodes == 1:
        return [sys.executable, "-m", *train]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(per_node)]
    if machine.nodes == 1:
        return [*torchrun, "--standalone", "-m", *train]
    assert machine.rendezvous
    host, _, port = machine.rendezvous.rpartition(":")
    torchrun += ["--nnodes", str(machine.nodes), "--master_addr", host, "--master_port", port]
    return [*shlex.split(machine.launcher or ""), *torchrun, "-m", *train]


def write_configuration(tree: dict[str, Any], conf: Path) -> None:
    from omegaconf import OmegaConf

    conf.mkdir(exist_ok=True)
    partial = conf / f"{NAME}.yaml.part"
    partial.write_text(OmegaConf.to_yaml(OmegaConf.create(tree)), encoding="utf-8")
    os.replace(partial, conf / f"{NAME}.yaml")


def check_names(recipe: Recipe) -> None:
    """Every key of the yaml must be one of fairseq's or of the model's, which fairseq itself says only when it starts.

    Raises:
        RecipeError: for a misspelt key, or a value of another type.
    """
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.dataclass.initialize import add_defaults
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    import macaron

    macaron.register_fairseq()
    given = {group: values for group, values in recipe.tree.items() if group not in ("defaults", "hydra")}
    try:
        add_defaults(OmegaConf.merge(OmegaConf.structured(FairseqConfig), OmegaConf.create(given)))
    except OmegaConfBaseException as error:
        raise RecipeError(
            f"{recipe.config}.yaml with its changes is no configuration of fairseq: {str(error).splitlines()[0]} "
            f"(at {error.full_key}). Correct --set, --arch or the yaml"
        ) from error


def check_model(recipe: Recipe) -> None:
    """What the model itself would refuse when the training starts: widths, or a scheme that its layers cannot follow.

    Raises:
        RecipeError: for a model of ours that cannot be built; of fairseq's own nothing is known here.
    """
    from omegaconf import OmegaConf

    import macaron

    macaron.register_fairseq()
    from macaron.user_dir.config import complete
    from macaron.user_dir.models.macaron import MODELS

    model: Any = MODELS.get(recipe.arch)
    if model is None:
        return
    try:
        complete(OmegaConf.create(recipe.tree["model"]), model.config(), model.architecture)
    except ValueError as error:
        raise RecipeError(f"--arch {recipe.arch}, --scheme {recipe.scheme}: {error}") from error
