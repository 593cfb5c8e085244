#!/usr/bin/env bash
# Trains the teachers of the demo and the study, and puts their weights, as float16, into configs/demo/teachers. The
# weights are in the repository, so this is needed only to make them again.
#
#   scripts/make_teachers.sh    run it again after an interruption to resume

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export OMP_NUM_THREADS=1
work=demo/teachers
mkdir -p "$work"

teach() { # NAME: trains a teacher and keeps its weights
    mtpd-train "configs/demo/teachers/$1.yaml" --out "$work/$1" --resume
    python - "$work/$1/student.pth" "configs/demo/teachers/$1.pth" <<'PYTHON'
import sys

import torch

source, target = sys.argv[1:]
content = torch.load(source, weights_only=True)
half = {name: one.half() if one.is_floating_point() else one for name, one in content['state_dict'].items()}
torch.save({'state_dict': half, 'meta': content['meta']}, target)
PYTHON
    mtpd-eval --model "configs/demo/teachers/$1.py" --checkpoint "configs/demo/teachers/$1.pth" --coco demo/shapes
}

python scripts/make_synthetic.py demo/shapes --train 300 --val 500
# Another seed: the teachers never see the student's images, nor those that both are evaluated on.
python scripts/make_synthetic.py "$work/shapes" --train 6000 --val 1 --seed 1
teach transformer > "$work/transformer.log" 2>&1 &
teach strong
teach weak
teach faster_strong
echo "--- waiting for the transformer ($work/transformer.log)"
wait %1
tail -n 3 "$work/transformer.log"
