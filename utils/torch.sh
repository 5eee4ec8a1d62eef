#!/usr/bin/env bash
# A virtual environment with torch and transformers, in .venv-torch. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted="torch>=2.6 transformers>=5.24,<6 numpy>=1.26,<3 ml-dtypes>=0.4,<1 pytest>=8,<10"
if ! { .venv-torch/bin/python -c '' && [[ $(cat .venv-torch/wanted) == "$wanted" ]]; } 2>/dev/null; then
  /usr/bin/python3 -m venv --clear .venv-torch
  echo "torch.sh: installing $wanted"
  # shellcheck disable=SC2086
  .venv-torch/bin/python -m pip install --quiet --disable-pip-version-check $wanted
  echo "$wanted" > .venv-torch/wanted
fi
