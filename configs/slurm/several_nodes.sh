#!/bin/bash
#SBATCH --job-name=lejepa-med
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Pretraining on the GPUs of several nodes: sbatch several_nodes.sh CONFIG RUN [key.path=value ...]
# One task is one rank on one GPU: --ntasks-per-node and --gpus-per-node are the same number.
# CONFIG, RUN and the cache lie on a file system that all nodes see.
# Three minutes before the time is up every rank gets SIGTERM: the run saves and leaves RUN/STOPPED, and the job is queued
# again and goes on. docs/several_gpus.md explains each line.
set -u
config=$1 run=$2
shift 2

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

resume=
[ -e "$run/config.yaml" ] && resume=--resume   # begun, if only just

srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec lejepa-med pretrain "$@"
' rank "$config" --out "$run" $resume "$@"
code=$?

if [ -e "$run/STOPPED" ] && [ $code -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
