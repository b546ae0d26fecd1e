#!/bin/sh
# Start one rank of an MPI program with its own part of the task's cores and GPUs.
#   ranks.sh PROGRAM ARGUMENTS...
# EXADASK_PART_CORES has the cores of all ranks on this node, EXADASK_RANK_CORES says how many one
# has, EXADASK_PART_GPUS the GPUs of all ranks on this node, and EXADASK_RANK_GPU_UNITS says how much
# of one a rank has [1/1000]; EXADASK_GPU_VARIABLE is where that goes. On several nodes the folder
# EXADASK_PART says what is different on each; where it is not known yet, EXADASK_PARTS lists them as
# NODE=FOLDER.
rank=${MPI_LOCALRANKID:-${OMPI_COMM_WORLD_LOCAL_RANK:-${PMI_LOCAL_RANK:-${PALS_LOCAL_RANKID:-${SLURM_LOCALID:-${PMI_RANK:-${PMIX_RANK:-0}}}}}}}
if [ -z "$EXADASK_PART" ] && [ -n "$EXADASK_PARTS" ]; then
  node=${SLURMD_NODENAME:-$(hostname)}
  for entry in $EXADASK_PARTS; do
    case $entry in "$node="*) EXADASK_PART=${entry#*=} ;; esac
  done
  export EXADASK_PART
fi
if [ -n "$EXADASK_PART" ]; then
  . "$EXADASK_PART/environment"
fi
if [ -d "$EXADASK_RANKS_FOLDER" ]; then
  : >"$EXADASK_RANKS_FOLDER/$EXADASK_SLOT-$$"  # the agent of this node watches its memory
fi
part() { echo "$1" | cut -d, -f"$(($2 + 1))-$(($2 + $3))"; }
if [ -n "$EXADASK_GPU_VARIABLE" ]; then
  gpus=$EXADASK_PART_GPUS units=${EXADASK_RANK_GPU_UNITS:-0}
  if [ "$units" -ge 1000 ]; then
    n_gpus=$((units / 1000))
    gpus=$(part "$gpus" $((rank * n_gpus)) $n_gpus)
  elif [ "$units" -gt 0 ]; then
    gpus=$(part "$gpus" $((rank / (1000 / units))) 1)
  fi
  export "$EXADASK_GPU_VARIABLE=$gpus"
fi
if [ -n "$EXADASK_PART_CORES" ]; then
  cores=$(part "$EXADASK_PART_CORES" $((rank * EXADASK_RANK_CORES)) "$EXADASK_RANK_CORES")
  taskset -cp "$cores" $$ >/dev/null 2>&1 || {
    echo "rank $rank must run on cores $cores, and what started it lets it only on" \
      "$(taskset -cp $$ | sed 's/.*: //'). Start ranks without --exact, -c or other binding." >&2
    exit 1
  }
fi
exec "$@"
