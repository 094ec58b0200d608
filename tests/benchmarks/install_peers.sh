#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a virtual environment for each library that the benchmarks compare with.
#
#   tests/benchmarks/install_peers.sh FOLDER [PYTHON]
#
# FOLDER/tunix and FOLDER/trl hold the packages of PyPI, about 1.5 GB each. Give the
# Python of covrl's environment, so that pip chooses the same JAX for both. PyTorch's
# wheel for Linux on PyPI brings CUDA along (several GB more); where a wheel for CPUs
# is wanted, name its folder by pip's own settings, such as PIP_FIND_LINKS.
set -euo pipefail

folder=${1:?usage: install_peers.sh FOLDER [PYTHON]}
python=${2:-python3}

make_environment() {
  local name=$1
  shift
  "$python" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet "$@"
}

mkdir -p "$folder"
make_environment tunix google-tunix==0.1.7
make_environment trl torch==2.13.0 trl==1.16.0
