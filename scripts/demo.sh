#!/usr/bin/env bash
# The main job on a synthetic set, in 4 minutes on two idle cores: caches two trained teachers (configs/demo/teachers), and
# trains a small student three ways for the same number of epochs: alone, directly from the strong teacher, progressively.
#
#   scripts/demo.sh     results go to demo/, a page about the progressive run to demo/progressive/report.html; run it
#                       again after an interruption to resume
#
# Two programs run side by side, one thread each: small networks gain more from that than from two threads.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
folder=demo  # the stage files in configs/demo name it too
mkdir -p "$folder"
export OMP_NUM_THREADS=1

train() { # NAME STAGE.yaml...: trains into $folder/NAME, or resumes what is there
    local name=$1
    shift
    mtpd-train "$@" --out "$folder/$name" --resume
}

cache() { # NAME: evaluates the teacher of that name and caches the levels that have objects
    local teacher=configs/demo/teachers/$1
    mtpd-eval --model "$teacher.py" --checkpoint "$teacher.pth" --coco "$folder/shapes" --workers 0 \
        --json "$folder/teacher_$1.json"
    mtpd-extract --teacher "$teacher.py" --checkpoint "$teacher.pth" --coco "$folder/shapes" \
        --out "$folder/cache/$1" --codec lean --levels p3,p4 --batch-size 16 --workers 0
}

both() { # LOG FIRST SECOND: runs both functions at once; shows the first, then what is left of the second
    local log=$folder/$1.log first=$2 second=$3
    "$second" > "$log" 2>&1 &
    local pid=$!
    "$first" || { kill "$pid" 2> /dev/null || true; return 1; }
    if kill -0 "$pid" 2> /dev/null; then
        echo "--- still running beside it ($log):"
        tail --pid="$pid" --lines=1 --follow "$log"
    fi
    wait "$pid" || { echo "failed, the end of $log:" >&2; tail -n 5 "$log" >&2; return 1; }
}

cache_strong() { cache strong; }
cache_weak() { cache weak; }
alone_and_progressive() {
    train alone configs/demo/alone.yaml
    train progressive configs/demo/progressive1.yaml configs/demo/progressive2.yaml
}
direct() { train direct configs/demo/direct.yaml; }

echo '=== 1 of 3: the data set'
python scripts/make_synthetic.py "$folder/shapes" --train 300 --val 500
echo '=== 2 of 3: the caches of both teachers'
both cache_weak cache_strong cache_weak
echo '=== 3 of 3: the student: alone, directly from the strong teacher, and progressively'
both direct alone_and_progressive direct
mtpd-report compare "$folder"/{alone,direct,progressive}
mtpd-report "$folder/progressive"
echo "the demo took $((SECONDS / 60)) min $((SECONDS % 60)) s"
python scripts/demo_table.py "$folder"
