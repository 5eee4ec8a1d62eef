#!/usr/bin/env bash
# Brings a Debian 12 machine to where the project builds: system packages, then a virtual environment in .venv.
# What is there already is left alone, so that a second run costs nothing and needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
while read -r package; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ $status == "install ok installed" ]] || missing+=("$package")
done < <(grep -v '^#' utils/packages.txt)

if ((${#missing[@]})); then
  install=(apt-get install -y --no-install-recommends "${missing[@]}")
  if ((EUID == 0)); then
    as_root=()
  elif sudo -n true 2>/dev/null; then
    as_root=(sudo)
  else
    echo "setup: error: expected these packages to be installed, got no right to do so; as root, run" >&2
    echo "  apt-get update && ${install[*]}" >&2
    exit 1
  fi
  "${as_root[@]}" apt-get update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"
fi

# The copy of the requirements is written last: it says that the environment is complete.
if ! { .venv/bin/python -c '' && cmp -s utils/requirements.txt .venv/requirements.txt; } 2>/dev/null; then
  /usr/bin/python3 -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r utils/requirements.txt
  cp utils/requirements.txt .venv/requirements.txt
fi
