# Sourced by ci/slurm and ci/gridengine: starting and ending daemons that live in one folder.

_marker=.exadask-ci

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# need PACKAGES PROGRAMS: install Debian packages when that is allowed, or say what is missing (exit 3).
need() {
  local packages=$1 program missing=()
  hash -r
  for program in $2; do [ -n "$(type -P "$program")" ] || missing+=("$program"); done
  [ ${#missing[@]} = 0 ] && return
  if [ "$(id -u)" = 0 ] && type -P apt-get >/dev/null && [ -n "${CI_INSTALL:-}${CI:-}" ]; then
    install_packages "$packages"
    return
  fi
  echo "$(basename "$0"): missing: ${missing[*]} (on Debian, as root: CI_INSTALL=1 $0 ...," \
    "or: apt-get install $packages)" >&2
  exit 3
}

# install_packages PACKAGES: without starting the daemons that are in them.
install_packages() (
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
  fi
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1 >/dev/null
)

# free_ports N: N ports of this machine that nobody listens on.
free_ports() {
  python3 -c '
import socket, sys
found = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in found: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in found))' "$1"
}

# fresh DIR: an empty folder of ours, whatever an earlier run left in it.
fresh() {
  if [ -e "$1/$_marker" ]; then remove "$1"; fi
  [ ! -e "$1" ] || [ -z "$(ls -A "$1")" ] || die "$1 is not empty, and not made by this script"
  mkdir -p "$1"
  touch "$1/$_marker"
}

# remove DIR: end what runs there, and delete it.
remove() {
  [ -e "$1" ] || return 0
  [ -e "$1/$_marker" ] || die "$1 was not made by this script"
  end_users "$1"
  rm -rf "$1"
}

# users DIR: the daemons ($DAEMONS, by name) that work in DIR or have a file open in it, and what
# belongs to a job ($JOB_MARK begins a variable of its) of the batch system in DIR ($CLUSTER_MARK).
# With $DAEMON_LOG only the daemons that write to this log.
users() {
  python3 - "$1/" "$DAEMONS" "$JOB_MARK" "$CLUSTER_MARK=$1" "${DAEMON_LOG:-}" <<'PYTHON'
import glob, os, re, sys

folder, daemons, job_mark, cluster_mark, log = sys.argv[1:]

def is_user(process):
    with open(process + "/stat") as file:
        if file.read().rpartition(")")[2].split()[0] == "Z":
            return False
    with open(process + "/comm") as file:
        if re.match(daemons, file.read()):
            links = [process + "/cwd", *glob.glob(process + "/fd/*")]
            return any(os.readlink(one).startswith(log or folder) for one in links)
    with open(process + "/environ", "rb") as file:
        environment = file.read().decode(errors="replace").split("\0")
    return all(
        any(one.startswith(mark) for one in environment) for mark in (job_mark, cluster_mark)
    )

for process in glob.glob("/proc/[0-9]*"):
    try:
        if is_user(process):
            print(os.path.basename(process))
    except OSError:  # it has ended, or is not ours
        pass
PYTHON
}

# end_users DIR: SIGTERM, then SIGKILL after four seconds; returns when they are gone.
end_users() {
  local signal=TERM pids began=$SECONDS
  while pids=$(users "$1"); do
    [ -n "$pids" ] || return 0
    [ $((SECONDS - began)) -lt 30 ] || die "cannot end the processes" $pids
    # shellcheck disable=SC2086
    kill -s "$signal" $pids 2>/dev/null || true
    [ $((SECONDS - began)) -lt 4 ] || signal=KILL
    sleep 0.2
  done
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
  local round seconds=$1
  shift
  for round in $(seq $((seconds * 5))); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  return 1
}
