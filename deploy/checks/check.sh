#!/usr/bin/env bash
# make check-deploy: the image, the compose file, the chart and Ray, checked by the programs that will run them.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/checks/engine.sh

# In CI nothing may be missing.
skips=()
[ -z "${CI:-}" ] || skips=(--expected-skips check-deploy)

.venv/bin/python -m pytest "${skips[@]}" tests/deploy/test_files.py tests/deploy/test_chart.py tests/deploy/test_measuring.py tests/deploy/test_ray.py
if ! engine_up; then
    cat <<'WORDS'
##############################################################################################
# NOT CHECKED: the image and the compose file. No Docker engine answers here and none could  #
# be started (that takes root on Debian 12). Everything else of deploy/ was checked.         #
##############################################################################################
WORDS
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi
trap engine_down EXIT
base_image
stand_ins
.venv/bin/python -m pytest "${skips[@]}" -m engine tests/deploy
