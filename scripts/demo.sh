#!/usr/bin/env bash
# The main job on a synthetic set, in about ten minutes on two cores: trains two teachers, extracts both, and trains the
# student three ways for the same number of epochs: alone, directly from the strong teacher, progressively.
#
#   scripts/demo.sh     results go to demo/, a page about the progressive run to demo/progressive/report.html; run it
#                       again after an interruption to go on
#
# Two programs run side by side, one thread each: small networks gain more from that than from two threads.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
folder=demo  # the stage files in configs/demo name it too
mkdir -p "$folder"
export OMP_NUM_THREADS=1

train() { # NAME STAGE.yaml...: trains into $folder/NAME, going on with what is there
    local name=$1
    shift
    mtpd-train "$@" --out "$folder/$name" --resume
}

extract() { # NAME: caches the teacher of that name
    mtpd-extract --teacher "$folder/teacher_$1/student_config.py" --checkpoint "$folder/teacher_$1/student.pth" \
        --coco "$folder/shapes" --out "$folder/cache/$1" --codec lean --batch-size 16 --workers 0
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

strong_teacher() { train teacher_strong configs/demo/teacher_strong.yaml; }
weak_teacher_and_baseline() { train teacher_weak configs/demo/teacher_weak.yaml && train alone configs/demo/alone.yaml; }
extract_strong() { extract strong; }
extract_weak() { extract weak; }
direct() { train direct configs/demo/direct.yaml; }
progressive() { train progressive configs/demo/progressive1.yaml configs/demo/progressive2.yaml; }

echo '=== 1 of 4: the data set'
python scripts/make_synthetic.py "$folder/shapes"
echo '=== 2 of 4: the teachers, and the student alone'
both teacher_weak_and_alone strong_teacher weak_teacher_and_baseline
echo '=== 3 of 4: the caches'
both extract_weak extract_strong extract_weak
echo '=== 4 of 4: the student, directly from the strong teacher and progressively'
both progressive direct progressive
mtpd-report compare "$folder"/{teacher_weak,teacher_strong,alone,direct,progressive}
mtpd-report "$folder/progressive"
python scripts/demo_table.py "$folder"
