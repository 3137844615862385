#!/bin/sh
# With curl: list layers, get one feature map as an array and as a picture, and read a refusal.
# Usage: maps.sh URL PHOTOGRAPH FOLDER
set -eu
model="$1/v1/models/cifar-resnet"

curl -sS --fail "$model/layers?layers=stages" -o "$3/layers.json"
curl -sS --fail --data-binary "@$2" "$model/features?layers=stage1.block2.relu&format=npy" -o "$3/sent.npy"
curl -sS --fail --data-binary "@$2" "$model/render?layer=stage1.block2.relu&colormap=viridis" -o "$3/map.png"
# Without --fail: a refusal is JSON that says what is wrong.
curl -sS --data-binary "@$2" "$model/features?layers=stage1.block2.rellu" -o "$3/problem.json"
