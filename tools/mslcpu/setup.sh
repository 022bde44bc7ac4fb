#!/bin/sh
# Installs the compiler that the checker needs, where it is missing (Debian, Ubuntu), and builds the native parts.
set -e
cd "$(dirname "$0")"
# A Mac runs kernels itself.
[ "$(uname)" != Darwin ] || exit 0
if ! command -v clang++-19 >/dev/null || ! command -v llvm-config-19 >/dev/null; then
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  $as_root apt-get install -y -qq --no-install-recommends clang-19 llvm-19-dev
fi
"${PYTHON:-python3}" -c "from mslcpu import build; build.native()"
