#!/bin/bash
# Train one run on several nodes with SLURM, one process for each node:
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --config=configs/cifar10_resnet18.py --workdir=/shared/runs/a
#
# The workdir must be on a file system that all nodes share. When the time is nearly over or the job is pre-empted, the
# run saves its state, and the job is queued again and resumes.
#SBATCH --job-name=jaxcnn
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

JAX_COORDINATOR_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):12355
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$SLURM_NTASKS

# srun is in the background, so that this shell receives the signal at once and passes it on
srun --kill-on-bad-exit=1 bash -c 'JAX_PROCESS_ID=$SLURM_PROCID exec jaxcnn train "$@"' train "$@" &
srun=$!
trap 'stopped=1; kill -TERM "$srun"' TERM
wait "$srun"
code=$?
while kill -0 "$srun" 2>/dev/null; do  # the first wait was ended by the signal
  wait "$srun"
  code=$?
done
[[ -n $stopped ]] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
