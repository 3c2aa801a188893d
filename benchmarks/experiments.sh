#!/usr/bin/env bash
# The small comparisons of docs/experiments.md: about fifty runs of one equal budget, their figures, curves and sheets.
#
#     bash benchmarks/experiments.sh CROPS VGG16.pth FACE.pth INSTRUMENTS OUT
#
# CROPS is what `unmask data crops` wrote, VGG16.pth the convolutions of a VGG-16 (Caffe's), FACE.pth a network that embeds
# faces, INSTRUMENTS what `unmask evaluate run --instruments` takes, OUT a new folder. What is done is passed over, so that
# an interrupted call goes on.
set -euo pipefail
crops=$1 vgg=$2 face=$3 instruments=$4 out=$5
budget=(crops="$crops" textures= real= perceptual_weights= epoch=30 ema=0.97
  'phases=[{steps: 150, size: 64, batch: 8, lr: 1.0e-3}]')

train() { # NAME RECIPE KEY=VALUE...
  local name=$1 recipe=$2
  shift 2
  [[ -f $out/$name/done ]] && return
  echo "== $name"
  local began=$SECONDS
  unmask train "$recipe" "${budget[@]}" out="$out/$name" "$@"
  echo "$((SECONDS - began)) s" >"$out/$name/done"
}

painted='losses={l1: 1, edge: 0.5}'
both='losses={l1: 1, edge: 0.5, bce: 1}'
train models/inpainter inpainter "$painted"
train models/attention attention "$painted"
train models/gated gated "$painted" sizes.width=12
train models/fourier fourier "$painted" 'sizes={width: 12, blocks: 4}'
train models/context-encoder context-encoder "$painted" 'sizes={width: 24, bottleneck: 500, size: 64}'
train models/oagan oagan "$both" sizes.width=12
train models/din2020 din2020 "$both" sizes.width=12

for name in adamw sgd rmsprop nadam radam adafactor muon; do
  train "optimizers/$name" segmenter optimizer.name="$name"
done

deep='perceptual: 0.03, style: 0.015'
train losses/l2 inpainter 'losses={l2: 1}'
train losses/l1 inpainter 'losses={l1: 1}'
train losses/l1-edge-detail inpainter 'losses={l1: 1, edge: 0.5, detail: 0.5}'
train losses/l1-ssim inpainter 'losses={l1: 1, ssim: 0.5}'
train losses/l1-edge-vgg inpainter "losses={l1: 1, edge: 0.5, $deep}" perceptual_weights="$vgg"
train losses/l1-edge-vgg-adversarial inpainter perceptual_weights="$vgg" \
  "losses={l1: 1, edge: 0.5, $deep, adversarial: {weight: 0.03, matching: 0.3}}"

train losses/l1-edge-identity inpainter 'losses={l1: 1, edge: 0.5, identity: 0.1}' identity_weights="$face"

light='{name: RandomHorizontalFlip}, {name: ColorJiggle, args: {brightness: 0.1, contrast: 0.1, saturation: 0.1}}'
strong="$light, {name: RandomAffine, args: {degrees: 20.0, translate: [0.1, 0.1], scale: [0.8, 1.2]}},
  {name: RandomGaussianBlur, args: {kernel_size: [3, 3], sigma: [0.5, 2.0]}}, {name: RandomErasing}"
train augmentation/none segmenter 'augmentation=[]'
train augmentation/light segmenter "augmentation=[$light]"
train augmentation/strong segmenter "augmentation=[$strong]"

[[ -f $out/folds/crossval.json ]] || unmask crossval segmenter -k 5 "${budget[@]}" out="$out/folds"

unmask tune segmenter --trials 20 "${budget[@]}" out="$out/search" 'tune={
  phases.0.lr: {low: 1.0e-4, high: 3.0e-2, log: true},
  phases.0.warm_up: {choices: [0.03, 0.2]},
  optimizer.name: {choices: [adamw, nadam, radam]},
  optimizer.weight_decay: {low: 1.0e-5, high: 1.0e-1, log: true}}'

# Only these faces may be shown: the public-domain portrait of `make demo`, its mirror image, and the same in less light.
mkdir -p "$out/portrait" "$out/report"
python - "$out/portrait" <<'PY'
import sys
import cv2
import numpy as np
from unmask.train.demo import make_portrait
rgb = make_portrait().truth
for name, picture in {"a": rgb, "b": rgb[:, ::-1], "c": 255 * (rgb / 255.0) ** 1.6}.items():
    cv2.imwrite(f"{sys.argv[1]}/{name}.png", np.ascontiguousarray(picture[..., ::-1].astype(np.uint8)))
PY
unmask data crops "$out/portrait" -o "$out/shown"
for recipe in "$out"/{models,losses}/*/recipe.json; do
  run=$(dirname "$recipe")
  name=$(basename "$(dirname "$run")")-$(basename "$run")
  [[ -f $out/report/$name.jpg ]] && continue
  if [[ $name == losses-* || $name == models-inpainter ]]; then
    unmask evaluate run "$run" --instruments "$instruments" --most 40 --report "$out/report/$name.json"
  fi
  unmask evaluate run "$run" --crops "$out/shown" --sheet "$out/report/$name.jpg"
done
for group in models optimizers losses augmentation folds; do
  unmask compare $(dirname "$out/$group"/*/log.jsonl) -o "$out/report/$group.png"
  unmask compare $(dirname "$out/$group"/*/log.jsonl) -o "$out/report/$group.html"
done

# What each painted, side by side: the third column of its sheet (masked, mask, result, truth), twice as large.
python - "$out/report" models losses <<'PY'
import sys
from pathlib import Path
import cv2
import numpy as np
folder = Path(sys.argv[1])
for group in sys.argv[2:]:
    files = sorted(folder.glob(f"{group}-*.jpg"))
    sheets = [cv2.resize(cv2.imread(str(file))[22:], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for file in files]
    columns = [sheets[0][:, :128], *(sheet[:, 256:384] for sheet in sheets), sheets[0][:, 384:]]
    names = ["hidden", *(file.stem.removeprefix(f"{group}-") for file in files), "truth"]
    head = np.full((24, 128 * len(columns), 3), 255, np.uint8)
    for i, name in enumerate(names):
        cv2.putText(head, name, (128 * i + 3, 16), cv2.FONT_HERSHEY_SIMPLEX, min(0.42, 6.5 / len(name)), 0, 1, cv2.LINE_AA)
    cv2.imwrite(str(folder / f"{group}-sheet.jpg"), np.vstack([head, np.hstack(columns)]), [cv2.IMWRITE_JPEG_QUALITY, 85])
PY
