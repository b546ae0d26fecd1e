#!/bin/sh
# The remote shell of mpiexec: runs a command in the part of a task that lies on another node.
#   reach.sh [OPTIONS] PLACE COMMAND...
# The first part is here. For the others the agent of this node is asked: it reads from /proc what
# this process was given, and says when it is over, and how, through a pipe named like the process.
while [ "${1#-}" != "$1" ]; do shift; done
place=$1
shift
if [ "$place" = exadask-0 ]; then
  EXADASK_PART=$EXADASK_GANG
  export EXADASK_PART
  . "$EXADASK_PART/environment"
  exec /bin/sh -c "$*"
fi
end=$EXADASK_GANG/end.$$
mkfifo "$end" || exit 1
echo "$$ $place" > "$EXADASK_GANG/asked" || exit 1
{ read -r code; cat >&2; } < "$end"
exit "$code"
