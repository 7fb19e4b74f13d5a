#!/bin/bash
#SBATCH --job-name=lejepa-med
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# configs/slurm/one_node.sh in a container: IMAGE=lejepa-med.sif sbatch slurm_apptainer.sh CONFIG RUN [key.path=value ...]
# CONFIG, RUN and the cache lie in the folder that the job is started from, or below a folder named in BIND (a,b,...).
# One task is one rank on one GPU: --ntasks-per-node and --gpus-per-node are the same number.
# Three minutes before the time is up every rank gets SIGTERM: the run saves and leaves RUN/STOPPED, and the job is queued
# again and goes on. docs/several_gpus.md explains each line.
set -u
config=$1 run=$2
shift 2

export MASTER_ADDR=127.0.0.1
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export IMAGE=${IMAGE:-lejepa-med.sif} BIND=${BIND:-$PWD}

resume=
[ -e "$run/config.yaml" ] && resume=--resume   # begun, if only just

# The inner shell knows its rank, and $resume may be nothing.
# shellcheck disable=SC2016,SC2086
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec apptainer run --nv --bind "$BIND" --pwd "$PWD" "$IMAGE" pretrain "$@"
' rank "$config" --out "$run" $resume "$@"
code=$?

if [ -e "$run/STOPPED" ] && [ $code -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
