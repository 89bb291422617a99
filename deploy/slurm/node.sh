#!/bin/bash
# One node of a training on several; train.sbatch and deploy/kubernetes/train.yml start it on each.
#
#   bash deploy/slurm/node.sh FIRST PORT NODES RANK ARGUMENTS OF tools/train.py...
#
# FIRST: the name of node 0, where the nodes meet at PORT. The folder is the checkout, and `save_dir` a disk that all
# nodes share. The run goes on from its newest checkpoint, and begins where there is none. Environment: POD_IP, the
# address of this node for the others (found by itself unless the node calls itself 127.0.0.1); MEET_SECONDS, how long
# it waits for the others before it gives up, for the scheduler to start it anew (600); STOP_FILE, a file at whose
# appearance the run writes a checkpoint and stops.
set -euo pipefail

if [ $# -lt 5 ]; then
    echo "error: node.sh FIRST PORT NODES RANK ARGUMENTS; it has $# of them" >&2
    exit 2
fi
first=$1 port=$2 nodes=$3 rank=$4
shift 4
deadline=$((SECONDS + ${MEET_SECONDS:-600}))

# "MASTER OWN": both as numbers, since the launcher of node 0 opens the meeting place only where they are equal. Where the
# name of a node that was replaced still leads to the old one, nobody answers there: it is looked up again.
addresses() {
    python - "$first" "$port" "$rank" <<'PYTHON'
import socket
import sys

name, port, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
master = socket.gethostbyname(name)
if rank:
    socket.create_connection((master, port), 2).close()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((master, port))
    print(master, probe.getsockname()[0] if rank else master)
PYTHON
}

until found=$(addresses 2>/dev/null); do
    if [ $SECONDS -ge $deadline ]; then
        echo "error: node $rank does not find $first:$port; it waited for ${MEET_SECONDS:-600} s" >&2
        exit 1
    fi
    sleep 1
done
read -r master own <<<"$found"
if [ "$rank" = 0 ] && [ -n "${POD_IP:-}" ]; then
    master=$POD_IP
elif [[ $own == 127.* && $first != localhost && $first != 127.* ]]; then
    echo "error: node $rank calls itself $own; set POD_IP to its address for the others" >&2
    exit 2
fi
export POD_IP=${POD_IP:-$own}

# The launcher waits for ever for the others, also where it has met a node that was just ending. $$ is the launcher.
log=log/$(date +%Y%m%d-%H%M%S)-node$rank
(
    while grep -qs '^State:.[^Z]' /proc/$$/status; do
        if [ -n "${STOP_FILE:-}" ] && [ -e "$STOP_FILE" ]; then
            kill -TERM $$
            exit
        fi
        if [ $SECONDS -ge $deadline ] && [ ! -e "$log/workerlog.0" ]; then
            echo "error: node $rank has not met all $nodes nodes in ${MEET_SECONDS:-600} s" >&2
            kill -TERM $$
            sleep 10
            kill -KILL $$ 2>/dev/null
            exit
        fi
        sleep 1
    done
) &
exec python -m paddle.distributed.launch --master "$master:$port" --nnodes "$nodes" --rank "$rank" --log_dir "$log" \
    tools/train.py "$@" --resume
