#!/bin/bash
# What srun starts once on every node: torchrun, which takes the number of its node from the environment.
export PET_NODE_RANK=$SLURM_NODEID
exec "$@"
