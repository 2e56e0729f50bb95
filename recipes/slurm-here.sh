#!/usr/bin/env bash
# A recipe through Slurm, on this machine alone: installs Debian's Slurm where it is missing, starts one of its own with
# everything it writes in a temporary folder, lets `make` send a recipe's jobs through srun, counts them, and stops it.
#
#   recipes/slurm-here.sh                                  the smallest recipe: a minute
#   recipes/slurm-here.sh -C recipes/gabor -j2 SEEDS=1     arguments of make, for another
#   recipes/slurm-here.sh --or-skip                        where Slurm cannot be installed or started, status 0
#
# A Slurm that runs here already is not touched: this one has its own configuration, ports, keys and sockets.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin

missing=1
if [[ ${1-} == --or-skip ]]; then missing=0; shift; fi

installed() { type munged slurmctld slurmd srun &> /dev/null; }
install() {
    local packages="apt-get install --yes --no-install-recommends slurm-wlm munge" sudo=
    command -v apt-get > /dev/null || { echo "no apt-get here: install Slurm and munge by hand" >&2; return 1; }
    if ((EUID)); then sudo="sudo -n"; fi
    export DEBIAN_FRONTEND=noninteractive
    $sudo $packages || { $sudo apt-get update && $sudo $packages; } || { echo "as root: $packages" >&2; return 1; }
} > /dev/null
if ! installed && ! install; then
    echo "skipped: slurm-wlm cannot be installed here" >&2
    exit $missing
fi

# Each daemon has a session of its own, so that Ctrl-C stops the recipe first. The last to start is the first to be stopped.
here=$(mktemp -d /tmp/slurm-here.XXXXXX)
daemons=() make=
start() { setsid "$@" > "$here/$1.out" 2>&1 & daemons=($! "${daemons[@]}"); }
idle() { [[ -z $(squeue --noheader) ]]; }
within() { # within SECONDS COMMAND…: until it succeeds
    local end=$((SECONDS + $1))
    until "${@:2}" 2> /dev/null; do ((SECONDS < end)) || return 1; sleep 0.2; done
}
stop() {
    local status=$? daemon
    trap - EXIT
    trap '' INT TERM HUP
    # scancel lets a job save its state; a signal to make would reach srun, which kills it.
    if ! idle 2> /dev/null; then scancel --user="$user" && within 40 idle || true; fi
    if [[ -n $make ]]; then kill "$make" 2> /dev/null && wait "$make" || true; fi
    for daemon in "${daemons[@]}"; do kill "$daemon" 2> /dev/null && wait "$daemon" || true; done
    rm -rf "$here"
    exit $status
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# One node, one partition, no control groups, no accounts.
user=$(id -un) host=$(hostname -s) hardware=$(slurmd -C | sed -n '1s/^NodeName=[^ ]* //p')
read -r port_controller port_node < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in sockets))')
mkdir "$here"/{state,spool}
cat > "$here/slurm.conf" << CONFIGURATION
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port_controller
SlurmdPort=$port_node
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MinJobAge=1000000  # seconds that squeue remembers a job
NodeName=$host NodeAddr=127.0.0.1 $hardware
PartitionName=here Nodes=$host Default=YES MaxTime=INFINITE
CONFIGURATION
# slurmd wants a plugin for control groups even if nothing uses it; version 1 is the one that needs no systemd.
[[ $(slurmd -V) < "slurm-wlm 23.02" ]] && cgroup=cgroup/v1 || cgroup=disabled
echo "CgroupPlugin=$cgroup" > "$here/cgroup.conf"
unset "${!SLURM_@}"  # of a job that this runs in
export SLURM_CONF=$here/slurm.conf
dd if=/dev/urandom of="$here/munge.key" bs=1024 count=1 status=none
chmod 400 "$here/munge.key"
chmod 755 "$here"  # munged wants its socket to be within everybody's reach

start munged --foreground --key-file="$here/munge.key" --socket="$here/munge.socket" --pid-file="$here/munged.pid" \
    --log-file="$here/munged.log" --seed-file="$here/munged.seed"
within 10 test -S "$here/munge.socket" || true
start slurmctld -D
start slurmd -D
ready() { [[ $(sinfo --noheader --format=%T) == idle ]]; }
within 30 ready || { echo "skipped: Slurm does not start here:" >&2; tail -n 5 "$here"/*.{out,log} >&2; exit $missing; }

# The recipe. `make -n` says beforehand how many jobs there are to be.
if (($# == 0)); then
    set -- -C recipes/meanvar -j4 NETS=cbr_tiny ARMS="random transfer" SEEDS=1 IMAGES=64 STEPS=4 EVAL_EVERY=4 PRETRAIN=4 \
        WIDTH=0.05 OUT="$here/out"
fi
set -- --no-print-directory "$@" RUN="srun --ntasks=1 --cpus-per-task=1 --quiet --quit-on-interrupt"
expected=$(make -n "$@" | grep -c ^srun || true)
make "$@" < /dev/null &
make=$!
wait "$make"
make=

within 20 idle
squeue --states=all --sort=i --format="%.5i %.12j %.10T %.8M %.20S %N"
ended=$(squeue --states=completed --noheader | wc -l)
echo "$ended of $expected jobs went through Slurm"
((ended == expected))
