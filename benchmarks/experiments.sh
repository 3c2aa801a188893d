#!/usr/bin/env bash
# The small comparisons of docs/experiments.md: about forty runs of one equal budget, their figures, curves and sheets.
#
#     bash benchmarks/experiments.sh CROPS VGG16.pth OUT
#
# CROPS is what `unmask data crops` wrote, VGG16.pth the convolutions of a VGG-16 (Caffe's), OUT a new folder. Runs that
# are done are passed over, so that an interrupted call goes on.
set -euo pipefail
crops=$1 vgg=$2 out=$3
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
