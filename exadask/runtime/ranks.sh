#!/bin/sh
# Start one rank of an MPI program with its own part of the task's cores and GPUs.
#   ranks.sh PROGRAM ARGUMENTS...
# EXADASK_RANK_CORES and EXADASK_RANK_GPUS have one part for each rank, with ':' between them.
rank=${MPI_LOCALRANKID:-${OMPI_COMM_WORLD_LOCAL_RANK:-${PMI_LOCAL_RANK:-${PALS_LOCAL_RANKID:-${SLURM_LOCALID:-${PMI_RANK:-${PMIX_RANK:-0}}}}}}}
part() { echo "$1" | cut -d: -f$((rank + 1)); }
if [ -n "$EXADASK_RANK_GPUS" ]; then
  gpus=$(part "$EXADASK_RANK_GPUS")
  export "$EXADASK_RANK_GPU_VARIABLE=$gpus"
fi
if [ -n "$EXADASK_RANK_CORES" ]; then
  exec taskset -c "$(part "$EXADASK_RANK_CORES")" "$@"
fi
exec "$@"
